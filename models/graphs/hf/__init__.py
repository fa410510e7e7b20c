"""Graphs of Hugging Face model folders: a module per family of architectures, the heads, and `folder`, the builder."""
