"""Runs in `.venv-torch`: writes small folders of seeded random weights, and what torch answers with them.

python torch_folders.py all FOLDER         → FOLDER/<architecture>-<head> and its .npz, for all of them
python torch_folders.py encode MODEL FILE  → FILE: what sentence-transformers' encode makes of TEXTS
python torch_folders.py golden FOLDER      → FOLDER/<architecture>.npz: tiny models and their answers, which are
                                             kept in tests/golden/folders so that `make test` needs no torch
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

torch.manual_seed(1)
TEXTS = [
    "A man is eating food.",
    "the quick brown fox jumps over the lazy dog",
    "Hello!",
    "",
    "Numbers 1234567890, accents: naïve café, and 漢字.",
    "<pad> a text that spells [PAD] a padding token <pad> is a text",
    "a long sentence that goes on and on " * 6,
]
QUERIES = ["what does the man eat?", "which fox", "hi", "", "numbers", "padding <pad> here", "how long is it " * 2]
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DISTIL = {"vocab_size": 300, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
COUNTED = SMALL | {"max_position_embeddings": 66, "pad_token_id": 1, "type_vocab_size": 1}
DEBERTA = SMALL | {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "position_buckets": 16,
    "max_relative_positions": -1,
}
MODERN = SMALL | {"local_attention": 8, "global_attn_every_n_layers": 3, "num_hidden_layers": 4, "pad_token_id": 0}
QWEN = SMALL | {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SMALL),
    "roberta": ("Roberta", COUNTED),
    "xlm-roberta": ("XLMRoberta", COUNTED),
    "mpnet": ("MPNet", SMALL | {"max_position_embeddings": 66, "pad_token_id": 1}),
    "distilbert": ("DistilBert", DISTIL),
    "electra": ("Electra", SMALL | {"embedding_size": 16}),
    "deberta-v3": ("DebertaV2", DEBERTA),
    "modernbert": ("ModernBert", MODERN),
    "qwen3": ("Qwen3", QWEN),
    "qwen2": ("Qwen2", {name: value for name, value in QWEN.items() if name != "head_dim"}),
}
LABELS = {0: "bad", 1: "fair", 2: "good"}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the architecture's own kind, trained on the texts, 300 tokens at most."""
    counted = kind in ("roberta", "xlm-roberta", "mpnet")
    names = ["<s>", "<pad>", "</s>", "<unk>"] if counted else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    begin, end = ("<s>", "</s>") if counted else ("[CLS]", "[SEP]")
    if kind in ("roberta", "qwen3", "qwen2", "modernbert"):
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        made.train_from_iterator(
            TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
        )
    elif kind in ("xlm-roberta", "deberta-v3"):
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.train_from_iterator(
            TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=names, unk_token=names[3])
        )
    else:
        made = Tokenizer(models.WordPiece(unk_token=names[3]))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=names))
    ids = {name: made.token_to_id(name) for name in names}
    if kind in ("qwen3", "qwen2"):
        pair, single = f"$A {end} $B {end}:1", f"$A {end}"
    elif kind in ("roberta", "xlm-roberta", "mpnet"):
        pair, single = f"{begin} $A {end} {end} $B {end}", f"{begin} $A {end}"
    else:
        pair, single = f"{begin} $A {end} $B:1 {end}:1", f"{begin} $A {end}"
    made.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind in ("bert", "electra") else None
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=names[1] if counted else names[0],
        unk_token=names[3],
        cls_token=begin,
        sep_token=end,
        model_max_length=64,
        **({} if inputs is None else {"model_input_names": inputs}),
    )


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights that matter: the default ones leave every answer nearly the same."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * (0.5 if "embed" in name else parameter.shape[-1] ** -0.5))
    return model.eval()


def model_of(kind: str, head: str) -> torch.nn.Module:
    name, fields = ARCHITECTURES[kind]
    labels = {} if head == "Model" else {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}}
    if head == "Pair":
        labels = {"num_labels": 1}
        head = "ForSequenceClassification"
    config = getattr(transformers, f"{name}Config")(**fields, **labels)
    return shaken(getattr(transformers, f"{name}{head}")(config))


def make(kind: str, head: str, folder: Path) -> None:
    model, tokenizer = model_of(kind, head), tokenizer_of(kind)
    model.save_pretrained(folder, max_shard_size="40KB" if kind == "electra" else "5GB")
    tokenizer.save_pretrained(folder)
    found: dict[str, Any] = {"text": np.array(TEXTS)}
    texts: list[Any] = [TEXTS]
    if head == "Pair":
        found = {"query": np.array(QUERIES), "document": np.array(TEXTS)}
        texts = [QUERIES, TEXTS]
    answers = []
    for one in zip(*texts, strict=True):
        truncation = "only_second" if head == "Pair" else True
        given = tokenizer(*[[text] for text in one], return_tensors="pt", truncation=truncation, max_length=64)
        with torch.no_grad():
            out = model(**given)
        answers.append((out.logits if head != "Model" else out.last_hidden_state.mean(1))[0].numpy())
    if head == "ForTokenClassification":
        longest = max(map(len, answers))
        answers = [np.pad(a, ((0, longest - len(a)), (0, 0))) for a in answers]
    found["embedding" if head == "Model" else "logits"] = np.stack(answers)
    np.savez(folder.with_suffix(".npz"), **found)


def sentence(kind: str, folder: Path, modes: str, dense: bool) -> None:
    """A sentence-transformers folder around one that `make` wrote."""
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    first = Transformer(str(folder), max_seq_length=48)
    width = first.get_word_embedding_dimension()
    parts: list[Any] = [first, Pooling(width, pooling_mode=tuple(modes.split("+")))]
    if dense:
        layer = Dense(width * len(modes.split("+")), 24)
        parts += [shaken(layer)]
    made = SentenceTransformer(
        modules=[*parts, Normalize()], prompts={"query": "query: ", "document": "passage: "}, device="cpu"
    )
    target = folder.with_name(f"{folder.name}-st")
    made.save(str(target))
    encode(target, folder.with_name(f"{folder.name}-st.npz"))


def encode(folder: Path, file: Path) -> None:
    made = SentenceTransformer(str(folder), device="cpu")
    np.savez(file, text=np.array(TEXTS), embedding=made.encode(TEXTS, batch_size=3))


def cross(folder: Path, file: Path) -> None:
    """CrossEncoder.predict of a folder, without its sigmoid."""
    made = CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    scores = made.predict(list(zip(QUERIES, TEXTS, strict=True)), batch_size=3)
    np.savez(file, query=np.array(QUERIES), document=np.array(TEXTS), logits=scores.reshape(len(TEXTS), -1))


HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "Pair")
SENTENCES = (
    ("bert", "mean", False),
    ("roberta", "cls", True),
    ("qwen3", "lasttoken", False),
    ("mpnet", "max+mean", True),
)


def everything(folder: Path) -> None:
    """One process for all, since torch takes seconds to load."""
    folder.mkdir(exist_ok=True)
    for kind in ARCHITECTURES:
        for head in HEADS:
            make(kind, head, folder / f"{kind}-{head}")
    for kind, modes, dense in SENTENCES:
        sentence(kind, folder / f"{kind}-Model", modes, dense)
    cross(folder / "bert-Pair", folder / "bert-cross.npz")


TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TINY_DISTIL = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
SPECIAL = {
    "distilbert": TINY_DISTIL,
    "qwen3": {"head_dim": 8},
    "electra": {"embedding_size": 8},
    "modernbert": {"num_hidden_layers": 3, "local_attention": 4},
}
GRAIN = 64  # weights are multiples of 1/64: they pack well


def golden(folder: Path) -> None:
    """Config, weights, ids and answers of a tiny classifier of every architecture, in one file each."""
    folder.mkdir(exist_ok=True)
    numbers = {label: number for number, label in LABELS.items()}
    for kind, (name, fields) in ARCHITECTURES.items():
        small = {key: TINY.get(key, value) for key, value in fields.items()} | {"max_position_embeddings": 24}
        config = getattr(transformers, f"{name}Config")(
            **small | SPECIAL.get(kind, {}), id2label=LABELS, label2id=numbers
        )
        model = shaken(getattr(transformers, f"{name}ForSequenceClassification")(config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.round(parameter * GRAIN) / GRAIN)
        np.savez_compressed(folder / f"{kind}.npz", **_golden_arrays(model, kind))


def _golden_arrays(model: Any, kind: str) -> dict[str, Any]:
    padding = model.config.pad_token_id or 0
    ids = torch.randint(4, 40, (3, 17))
    mask = torch.ones_like(ids)
    for row, length in ((1, 9), (2, 2)):
        ids[row, length:], mask[row, length:] = padding, 0
    given = {"input_ids": ids, "attention_mask": mask}
    if kind in ("bert", "electra"):
        given["token_type_ids"] = (torch.arange(17)[None] > torch.tensor([[6], [4], [0]])).long() * mask
    with torch.no_grad():
        logits, last = model(**given).logits, model.base_model(**given).last_hidden_state
    weights = {f"weight:{name}": value.numpy() for name, value in model.state_dict().items() if value.ndim}
    packed = {name: np.round(value * GRAIN).astype(np.int16) for name, value in weights.items()}
    arrays = {name: value.numpy() for name, value in given.items()}
    model.config.architectures = [type(model).__name__]
    config = np.array(model.config.to_json_string())
    return {"config": config, **packed, **arrays, "logits": logits.numpy(), "tokens": last.numpy()}


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "all":
        everything(Path(words[0]))
    elif command == "golden":
        golden(Path(words[0]))
    elif command == "encode":
        encode(Path(words[0]), Path(words[1]))
