"""A Hugging Face model folder → `model.toml`: what `foreseen models add FOLDER` reads, writes and checks. No torch."""
