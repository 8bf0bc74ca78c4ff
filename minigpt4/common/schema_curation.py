"""The configuration of stage 2's data: `curation`, a key of `common/schema.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from minigpt4.common.schema_generation import GenerationConfig


def _detailed() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=160)


@dataclass(kw_only=True, slots=True)
class DescribeConfig:
    """How the stage-1 model describes pictures."""

    prompt_path: str | None = None
    """Text file whose first line asks for the description."""
    min_tokens: int = 80
    """A shorter description is continued."""
    continue_prompt: str = "Continue"
    max_continues: int = 1
    """How often at most."""
    samples: int = 1
    """Descriptions a picture: one by `generation`, the others drawn, for a refiner that compares them."""
    batch_size: int = 16
    """Pictures described, and written down, at a time."""
    generation: GenerationConfig = field(default_factory=_detailed)


@dataclass(kw_only=True, slots=True)
class RefineConfig:
    """Who corrects the descriptions."""

    refiner: str = "endpoint"
    """endpoint (a chat-completions server), llm (a language model's folder) or local (rules and agreement)."""
    prompt_path: str | None = None
    """Text file with the request for a correction; the description follows it."""
    min_overlap: float = 0.3
    """Share of a correction's words that the description must hold; below it, the answer is about something else."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """endpoint: address that `/chat/completions` is appended to."""
    model: str = ""
    """endpoint: the model's name there."""
    api_key_env: str | None = None
    """endpoint: environment variable that holds the key; null: none is sent."""
    temperature: float = 0.0
    max_tokens: int = 512
    """endpoint, llm: tokens of a correction."""
    timeout: float = 60.0
    """endpoint: seconds that one request may take altogether."""
    attempts: int = 5
    """endpoint: requests for one description in a run; afterwards it stays pending for the next run."""
    backoff: float = 1.0
    """endpoint: seconds before the second attempt, doubled each time, up to max_backoff, times 0.5 to 1 by lot."""
    max_backoff: float = 60.0
    """endpoint: seconds to wait at most, also where the server asks for more."""
    requests_per_minute: float | None = None
    concurrency: int = 4
    """endpoint: requests at the same time."""
    price_in: float | None = None
    """endpoint: price of a million prompt tokens, for the bill."""
    price_out: float | None = None
    """endpoint: the same of answered tokens."""
    llm_model: str | None = None
    """llm: folder in Hugging Face's layout; null: model.llama_model."""
    min_support: float = 0.5
    """local: share of a picture's descriptions that must name a thing for it to stay."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Rules for corrected descriptions; null or 0 leaves a rule out."""

    min_words: int = 10
    max_words: int = 300
    max_repetition: float | None = 0.2
    """Share of word trigrams that occurred before in the same text."""
    max_fragments: float | None = 0.0
    """Share of sentences without a capital at the beginning or a full stop at the end."""
    min_english: float | None = 0.15
    """Share of words that are among English's commonest."""
    max_strange: float | None = 0.02
    """Share of characters that no English sentence needs."""
    min_agreement: float | None = None
    """Support by a picture's other descriptions, where the refiner says one (local)."""


@dataclass(kw_only=True, slots=True)
class CurationConfig:
    """From the stage-1 model's descriptions to stage 2's data."""

    dir: str = "${paths.output_root}/curation"
    """Folder of the ledger and of the pictures drawn."""
    pictures: int = 5000
    """Pictures drawn from all of `datasets` together."""
    seed: int = 42
    split: str = "train"
    port: int = 8765
    """Of the review page, on this machine only."""
    export_dir: str = "${paths.output_root}/curation/cc_sbu_align"
    """Folder of the finished data, which the card cc_sbu_align reads."""
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
