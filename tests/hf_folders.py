"""Tiny Hugging Face folders out of `tests/golden/folders`: models of seeded random weights and torch's answers.

`.venv-torch/bin/python tests/integrations/torch_folders.py golden tests/golden/folders` makes these files again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from foreseen.models.measure.texts import texts
from foreseen.types import Array

GOLDEN = Path(__file__).parent / "golden" / "folders"
GRAIN = 64
KINDS = sorted(path.stem for path in GOLDEN.glob("*.npz"))
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = [*SPECIAL, *sorted({word for text in texts(40) for word in text.split()})[:36]]


def golden(kind: str) -> dict[str, Array]:
    with np.load(GOLDEN / f"{kind}.npz", allow_pickle=False) as loaded:
        return dict(loaded)


def written(folder: Path, kind: str, head: str = "ForSequenceClassification", **changed: Any) -> Path:
    """The folder of a golden model. `head` "Model" leaves the classifier out; `changed` are fields of config.json."""
    arrays = golden(kind)
    config = json.loads(str(arrays["config"])) | changed
    config["architectures"] = [config["architectures"][0].replace("ForSequenceClassification", head)]
    weights = {
        name.removeprefix("weight:"): (value / GRAIN).astype(np.float32)
        for name, value in arrays.items()
        if name.startswith("weight:")
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    save_file(weights, folder / "model.safetensors")
    return folder


def sentence(folder: Path, kind: str, pooling: dict[str, Any], *more: str, **config: Any) -> Path:
    """A sentence-transformers folder: the encoder, its pooling and further modules by name (2_Dense, 3_Normalize)."""
    written(folder, kind, "Model")
    names = ["", "1_Pooling", *more]
    kinds = ["Transformer", *(name.split("_")[1] for name in names[1:])]
    modules = [
        {"idx": at, "name": str(at), "path": name, "type": f"sentence_transformers.models.{kinds[at]}"}
        for at, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if config:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def dense(folder: Path, width: int, out: int, **changed: Any) -> tuple[Array, Array]:
    """A dense layer's folder; gives its weight [out, width] and bias [out]."""
    chance = np.random.default_rng(3)
    weight, bias = (chance.standard_normal(shape).astype(np.float32) for shape in ((out, width), (out,)))
    folder.mkdir()
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "model.safetensors")
    said = {"in_features": width, "out_features": out, "activation_function": "torch.nn.modules.activation.Tanh"}
    (folder / "config.json").write_text(json.dumps(said | changed))
    return weight, bias


def tokenizer() -> Tokenizer:
    """A word a token, of 36 that the build's own texts use; pairs with token types."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def cross_encoder(folder: Path) -> Path:
    """A model of one label that scores (query, document), from the golden BERT."""
    one = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    written(folder, "bert", **one)
    weights = {
        name.removeprefix("weight:"): (value / GRAIN).astype(np.float32)
        for name, value in golden("bert").items()
        if name.startswith("weight:")
    }
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = np.ascontiguousarray(weights[name][:1])
    save_file(weights, folder / "model.safetensors")
    return folder
