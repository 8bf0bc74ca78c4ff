"""The tiny tokenizer: a sentencepiece BPE model with byte fallback, set up as LLaMA's is."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece

from minigpt4.common.types import IMAGE_TOKEN
from recipes.tiny.codes import PIECES
from recipes.tiny.dialogues import SHORT_PROMPTS, SYSTEM, TEMPLATE, alignment_prompts, make_dialogue, training_scene
from recipes.tiny.sizes import VOCABULARY_SIZE

_SENTENCES = 6000
# Words that people type at a chat prompt but the scenes' language lacks; without them they would be read byte by byte.
_CHAT_WORDS = (
    "Hello! Hi there, thanks. Please tell me what you see. Can you describe the photo or the scene again? "
    "Which objects do you notice and who are you? I am not sure. Why? When? That was great, thank you very much."
)


def train_tokenizer(folder: Path) -> Path:
    """Train the tokenizer on the text the language model will read, and write it as a LLaMA folder holds it.

    Returns:
        The path of `tokenizer.model`.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentence_length=20000,
        user_defined_symbols=["###", "<Img>", "</Img>", *PIECES],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    _write_configs(folder)
    return path


def _corpus() -> list[str]:
    prompts = alignment_prompts()
    lines = []
    for number in range(_SENTENCES):
        rng = random.Random(f"tokenizer-{number}")
        dialogue = make_dialogue(training_scene(rng), rng, prompts)
        lines += [dialogue.prompt.replace(IMAGE_TOKEN, ""), dialogue.answer]
    rare = [*SHORT_PROMPTS, SYSTEM, TEMPLATE.pattern, _CHAT_WORDS]
    return lines + rare * 20


def _write_configs(folder: Path) -> None:
    specials = {
        name: {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **{name: {"__type": "AddedToken", **special} for name, special in specials.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 512,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n", encoding="utf-8")
