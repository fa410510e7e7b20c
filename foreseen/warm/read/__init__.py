"""Readers of batch files, one module per file format, and the plain form of Arrow types."""
