"""A cross-encoder of seeded random weights as a Hugging Face folder: BertForSequenceClassification with one label.

No reranker's weights are to be had as a package. This one ranks by chance, but its scores depend on every word of both
texts, so that two programs which agree on them read the folder alike.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from foreseen.types import Array

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = string.ascii_lowercase + string.digits + string.punctuation
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def random_cross_encoder(
    folder: Path, *, seed: int = 17, hidden: int = 64, layers: int = 2, inner: int = 128, positions: int = 256
) -> Path:
    """Write the folder: config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": len(VOCABULARY),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 16,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "torch_dtype": "float32",
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(np.random.default_rng(seed), config), folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").write_text(_tokenizer().to_str())
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions, **names}
    inputs = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | inputs))
    return folder


def _weights(chance: np.random.Generator, config: dict[str, object]) -> dict[str, Array]:
    hidden, inner = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    made: dict[str, Array] = {}

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        made[name] = (chance.standard_normal(shape) * scale).astype(np.float32)

    def linear(name: str, out: int, size: int, scale: float = 1.0) -> None:
        add(f"{name}.weight", out, size, scale=scale / np.sqrt(size))
        add(f"{name}.bias", out, scale=0.05)

    def norm(name: str) -> None:
        made[f"{name}.weight"] = np.ones(hidden, np.float32)
        made[f"{name}.bias"] = np.zeros(hidden, np.float32)

    base = "bert.embeddings"
    add(f"{base}.word_embeddings.weight", len(VOCABULARY), hidden)
    add(f"{base}.position_embeddings.weight", int(str(config["max_position_embeddings"])), hidden, scale=0.5)
    add(f"{base}.token_type_embeddings.weight", 2, hidden, scale=0.5)
    norm(f"{base}.LayerNorm")
    for at in range(int(str(config["num_hidden_layers"]))):
        layer = f"bert.encoder.layer.{at}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", 1, hidden, scale=3.0)
    return made


def _tokenizer() -> Tokenizer:
    """A letter a token."""
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))],
    )
    made.add_special_tokens(SPECIAL)
    return made
