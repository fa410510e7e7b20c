"""Near and far: memory, evictions, latency, errors."""

from __future__ import annotations

from grafana.panels import Panel, Row
from grafana.queries import FRESH, NEEDS_NONE, NEEDS_ONE, OURS, RATE, UP_OR_DOWN, quantile, rate, total

STORE = (
    Row(
        "Near: each worker's memory",
        (
            Panel(
                "Near, bytes",
                "All workers together; each holds --near-bytes at most.",
                "bytes",
                ((f"sum(foreseen_near_bytes{{{OURS}}})", "near"),),
            ),
            Panel(
                "Near, entries",
                "All workers together; the same entry may lie in several.",
                "short",
                ((f"sum(foreseen_near_entries{{{OURS}}})", "entries"),),
            ),
            Panel(
                "Near, evictions",
                "Evicted entries. Many, with few hits from near: raise --near-bytes.",
                "ops",
                ((total("foreseen_near_evictions_total", OURS), "evictions"),),
            ),
        ),
    ),
    Row(
        "Far: Redis",
        (
            Panel(
                "Far up",
                "Whether Redis answered the scrape.",
                "none",
                ((f"min(foreseen_far_up{{{OURS}}})", "up"),),
                "stat",
                NEEDS_ONE,
                4,
                4,
                words=UP_OR_DOWN,
            ),
            Panel(
                "Far disabled",
                "open: Redis failed three times in a row; it is probed twice a second. foreign: it was filled under "
                "another root secret. See runbook: ForeseenStoreForeign.",
                "none",
                (
                    (f"max(foreseen_far_breaker_open{{{OURS}}})", "open"),
                    (f"max(foreseen_far_foreign{{{OURS}}})", "foreign"),
                ),
                "stat",
                NEEDS_NONE,
                4,
                4,
                words=((0.0, "closed", "green"), (1.0, "open", "red")),
            ),
            Panel(
                "Memory used",
                "Share of maxmemory. At 100 % Redis evicts the least used, which is as it should be.",
                "percentunit",
                (
                    (
                        f"max(foreseen_far_memory_bytes{{{OURS}}} / (foreseen_far_memory_limit_bytes{{{OURS}}} > 0))",
                        "used",
                    ),
                ),
                "stat",
                ((None, "green"),),
                4,
                4,
                1,
                1.0,
            ),
            Panel(
                "Entries",
                "Keys in Redis.",
                "short",
                ((f"max(foreseen_far_entries{{{OURS}}})", "entries"),),
                "stat",
                ((None, "blue"),),
                4,
                4,
            ),
            Panel(
                "Running for",
                "It begins anew when Redis was started again, empty.",
                "s",
                ((f"min(foreseen_far_uptime_seconds{{{OURS}}})", "uptime"),),
                "stat",
                ((None, "blue"),),
                4,
                4,
            ),
            Panel(
                "Pending",
                "Bytes on their way to Redis. Near --far-pending-bytes entries are dropped.",
                "bytes",
                ((f"sum(foreseen_far_pending_bytes{{{OURS}}})", "pending"),),
                "stat",
                ((None, "green"), (32e6, "red")),
                4,
                4,
            ),
            Panel(
                "Wrong entries in Redis",
                "Entries read in the time shown that failed their proof (length, format, identity or tag). They were "
                "computed anew and never answered. See runbook: ForeseenVerifyFailed.",
                "none",
                ((f"sum(increase(foreseen_verify_failed_total{{{OURS}}}[$__range]))", "entries"),),
                "stat",
                NEEDS_NONE,
                4,
                4,
                0,
            ),
            Panel(
                "Redis memory",
                "Used, and the limit.",
                "bytes",
                (
                    (f"max(foreseen_far_memory_bytes{{{OURS}}})", "used"),
                    (f"max(foreseen_far_memory_limit_bytes{{{OURS}}})", "limit"),
                ),
            ),
            Panel(
                "Evicted and expired",
                "Evicted: for want of memory. Expired: its time was over. More evictions than half "
                "of what is stored: Redis is too small. See runbook: ForeseenEvictionStorm.",
                "ops",
                (
                    (f"max(rate(foreseen_far_evicted_entries_total{{{OURS}}}[{RATE}]))", "evicted"),
                    (f"max(rate(foreseen_far_expired_entries_total{{{OURS}}}[{RATE}]))", "expired"),
                    (total("foreseen_entry_bytes_count", OURS), "stored"),
                ),
            ),
            Panel(
                "Far latency",
                "Time of one get (all rows of a moment) or put.",
                "s",
                tuple(
                    (quantile(q, "foreseen_far_duration_seconds", "op", OURS), f"{{{{op}}}} p{q * 100:g}")
                    for q in (0.5, 0.99)
                ),
                steps=((None, "transparent"), (0.05, "red")),
            ),
            Panel(
                "Far operations",
                "Gets and puts per second.",
                "ops",
                ((rate("foreseen_far_duration_seconds_count", "op", OURS), "{{op}}"),),
            ),
            Panel(
                "Far errors",
                "By kind. timeout, connect: Redis is slow or gone; open: the breaker spared the wait; oom: "
                "Redis is full and does not evict; auth, permission: its users changed.",
                "ops",
                ((rate("foreseen_far_errors_total", "kind", OURS), "{{kind}}"),),
            ),
            Panel(
                "Not stored",
                "Entries that were answered but not stored: large, pending (too many under way), far (it failed).",
                "ops",
                ((rate("foreseen_far_dropped_entries_total", "reason", OURS), "{{reason}}"),),
            ),
            Panel(
                "Entry size",
                "As they lie in Redis.",
                "bytes",
                tuple((quantile(q, "foreseen_entry_bytes", where=OURS), f"p{q * 100:g}") for q in (0.5, 0.99)),
            ),
            Panel(
                "Failed proofs by reason",
                "identity, tag: a client without the secret writes here.",
                "ops",
                ((rate("foreseen_verify_failed_total", "reason", OURS), "{{reason}}"),),
            ),
            Panel(
                "Leases",
                "Rows of slow models by what a lease made of them. won: computed here; waited: another proxy computed "
                "them; taken-over: its leader died or failed; failed: Redis did, so computed here as without.",
                "rowsps",
                ((rate("foreseen_lease_rows_total", "outcome", OURS), "{{outcome}}"),),
                "stacked",
            ),
            Panel(
                "Hits by tier",
                "Rows answered from near and from far.",
                "rowsps",
                ((rate("foreseen_rows_total", "result", FRESH), "{{result}}"),),
                "stacked",
            ),
        ),
    ),
)
