"""The refiner that asks a language model on this machine, here the one that ships."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PROJECT
from minigpt4.common.schema import Config
from minigpt4.curate.__main__ import main, run
from minigpt4.curate.ledger import Event, Ledger, SampleState, Tally, read_events, sample_states
from minigpt4.curate.refiners import RefineError
from minigpt4.curate.refiners.language_model import LanguageModelRefiner
from tests.curate.conftest import described, fill, steps_of
from tests.launch import launch
from tests.runners.project import PARITY_A, logging_restored

CONFIG = PROJECT / "train_configs" / "scenes_curation.yaml"
DESCRIPTION = "There is a large red circle at the top. There is a large red circle at the top"
OBJECTS = ("large red circle", "small blue star", "medium pink ring", "small green heart", "large white square")


def options(folder: Path, **refine: object) -> list[str]:
    """Options of a run that refines by the tiny language model, and by default takes any answer."""
    settings: dict[str, object] = {"refiner": "llm", "max_tokens": 60, "min_overlap": 0.0}
    chosen = [f"curation.refine.{key}={value}" for key, value in (settings | refine).items()]
    return [f"curation.dir={folder}", "run.device=cpu", "model.ckpt=null", *chosen]


def config(folder: Path, *more: str, **refine: object) -> Config:
    return load_config(CONFIG, [*options(folder, **refine), *more]).config


def different(number: int) -> Event:
    return described(number, f"There is a {OBJECTS[number % 5]} in the centre. a {OBJECTS[number % 3]}")


def refinements(folder: Path) -> list[Event]:
    return steps_of(read_events(folder / "ledger.jsonl"), "refine")


def refine(folder: Path, *more: str, **settings: object) -> str:
    """Refine what the ledger holds; the tokens that it took."""
    return run("refine", config(folder, *more, **settings))[0]


def build_refiner(cfg: Config) -> LanguageModelRefiner:
    return LanguageModelRefiner(cfg.curation.refine, model=cfg.model, seed=42, device="cpu")


def states(folder: Path) -> dict[str, SampleState]:
    return sample_states(read_events(folder / "ledger.jsonl"))


def tally(folder: Path) -> tuple[int, int, int, dict[str, int], int]:
    """Samples drawn, accepted, rejected, pending by step, and failed."""
    counted = Tally.of(states(folder))
    return counted.drawn, counted.accepted, counted.rejected.total(), dict(counted.pending), counted.failed


@pytest.fixture(scope="module")
def tiny_refiner(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelRefiner:
    return build_refiner(config(tmp_path_factory.mktemp("none")))


def prompt_of(refiner: LanguageModelRefiner, description: str) -> str:
    """The text whose embeddings the language model is given."""
    seen: list[list[int]] = []
    embedding = refiner.llm.get_input_embeddings()  # type: ignore[operator]
    hook = embedding.register_forward_hook(lambda _, ids, __: seen.append(ids[0].flatten().tolist()))
    refiner.refine("0", [description, "never asked about"])
    hook.remove()
    return refiner.encoder.tokenizer.decode(seen[0])


def test_it_asks_as_in_the_paper(tiny_refiner: LanguageModelRefiner) -> None:
    asked = prompt_of(tiny_refiner, DESCRIPTION)
    request = " ".join((PROJECT / "prompts" / "curation_refine.txt").read_text().split())
    assert request.startswith("Fix the error in the given paragraph.")
    assert asked == f"###Human: {request} {DESCRIPTION} ###Assistant: "


def test_an_answer_ends_at_the_stop_text_and_is_counted(tiny_refiner: LanguageModelRefiner) -> None:
    correction = tiny_refiner.refine("0", [DESCRIPTION])
    assert correction.text.startswith("There is") and "#" not in correction.text
    assert 10 < correction.usage["completion_tokens"] < 60
    prompt = tiny_refiner.encoder.prompt(f"{tiny_refiner.request} {DESCRIPTION}", num_images=0)
    assert correction.usage["prompt_tokens"] == len(prompt)


def test_the_command_writes_corrections_and_the_bill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        fill(ledger, 3, different)
    with logging_restored():
        main(["refine", "--cfg-path", str(CONFIG), "--options", *options(tmp_path)])
    events = refinements(tmp_path)
    assert [event["sample"] for event in events] == ["0", "1", "2"]
    assert all(event["text"].startswith("There is") for event in events)
    taken = {key: sum(event["usage"][key] for event in events) for key in ("prompt_tokens", "completion_tokens")}
    out = capsys.readouterr().out
    assert f"prompt_tokens {taken['prompt_tokens']}, completion_tokens {taken['completion_tokens']}" in out
    assert "3 drawn = 0 accepted + 0 rejected + 3 pending (3 wait for filter)" in out


DIES = """
import os, signal, sys
from minigpt4.curate.__main__ import main
from minigpt4.curate.refiners.language_model import LanguageModelRefiner
real = LanguageModelRefiner.refine

def refine(self, sample, texts):
    if sample == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, sample, texts)

LanguageModelRefiner.refine = refine
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_corrections(tmp_path: Path) -> None:
    sampled = {"temperature": 0.7}  # what is sampled must not depend on what was sampled before
    for name in ("full", "killed"):
        with Ledger(tmp_path / name / "ledger.jsonl") as ledger:
            fill(ledger, 6, different)
    refine(tmp_path / "full", **sampled)
    full = refinements(tmp_path / "full")
    arguments = ["refine", "--cfg-path", str(CONFIG), "--options", *options(tmp_path / "killed", **sampled)]
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    ended = launch(str(script), *arguments, cwd=PROJECT)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert refinements(tmp_path / "killed") == full[:3]
    refine(tmp_path / "killed", **sampled)
    assert refinements(tmp_path / "killed") == full  # the first three were not asked for again
    assert refine(tmp_path / "killed", **sampled) == "this run: prompt_tokens 0, completion_tokens 0"
    assert len({event["text"] for event in full}) > 3


@pytest.mark.parametrize(
    ("more", "settings", "reason"),
    [
        (["model.end_sym=There"], {}, "the answer is empty"),  # with which the tiny model begins
        (
            [],
            {"min_overlap": 0.99},
            r"the answer shares \d\d% of its words with the description, should be at least 99%",
        ),
        ([], {"max_tokens": 4}, "the answer is cut at curation.refine.max_tokens, after 4 tokens: 'There"),
    ],
)
def test_a_useless_answer_leaves_its_sample_pending(
    more: list[str], settings: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        fill(ledger, 4, different)
    assert "completion_tokens 0" not in refine(tmp_path, *more, **settings)  # it was asked, and paid for
    assert all(re.search(reason, event["error"]) for event in refinements(tmp_path))
    assert tally(tmp_path) == (4, 0, 0, {"refine": 4}, 4)
    refine(tmp_path)  # with a model that answers, all are corrected
    assert tally(tmp_path) == (4, 0, 0, {"filter": 4}, 0)


def test_one_bad_description_does_not_stop_the_others(tmp_path: Path) -> None:
    bad = {0: "An image of <ImageHere>.", 1: "red dog " * 400, 2: "red dog " * 120, 4: " "}
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        fill(ledger, 5, lambda number: described(number, bad[number]) if number in bad else different(number))
    refine(tmp_path, "model.max_context_len=1000")
    errors = {event["sample"]: event.get("error", "") for event in refinements(tmp_path)}
    assert "sample 0: 1 image placeholder(s) for 0 image(s)" in errors["0"]
    assert "there is room for 1000" in errors["1"]
    assert "context" in errors["2"]
    assert (errors["3"], errors["4"]) == ("", "")
    assert tally(tmp_path) == (5, 0, 0, {"refine": 3, "filter": 2}, 3)


def test_every_sample_is_accounted_for_to_the_end(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        fill(ledger, 6, lambda number: described(number, "A <ImageHere>") if number == 5 else different(number))
    refine(tmp_path)
    cfg = config(tmp_path)
    cfg.curation.filter.max_words = sorted(
        len(state.text.split()) for state in states(tmp_path).values() if state.text
    )[2]
    run("filter", cfg)
    run("review", cfg, accept_all=True)
    drawn, accepted, rejected, pending, failed = tally(tmp_path)
    assert (drawn, pending, failed) == (6, {"refine": 1}, 1)
    assert accepted + rejected == 5 and accepted >= 3


def test_the_folder_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"curation\.refine\.llm_model: /nowhere does not exist"):
        build_refiner(config(tmp_path, llm_model="/nowhere"))
    with pytest.raises(ConfigError, match=r"no usable tokenizer in "):
        build_refiner(config(tmp_path, llm_model=tmp_path))


def test_its_own_language_model_wins(tmp_path: Path) -> None:
    refiner = build_refiner(config(tmp_path, llm_model=PARITY_A / "llama"))
    assert refiner.llm.config.hidden_size == 64  # type: ignore[union-attr]
    assert refiner.encoder.tokenizer.vocab_size == 800
    with pytest.raises(RefineError, match="the answer is empty") as failure:  # its weights are random
        refiner.refine("0", [DESCRIPTION])
    assert failure.value.usage["completion_tokens"] > 0 and not failure.value.fatal
