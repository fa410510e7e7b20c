"""Everything is killed, stopped, slowed and corrupted at random instants under load: `make chaos`."""
