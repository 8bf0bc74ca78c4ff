"""No setting, however odd, ends in a traceback: it is refused in one line, or it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError, MiniGPT4Error
from minigpt4.runners import train as train_module
from tests.runners.project import Project

DEEP = 5000
"""Levels that no recursive reader survives."""
HUGE = "9" * 400
"""An integer that no float can hold."""
OPTIONS = [
    # sections and datasets of another shape
    ("datasets=[]", "datasets: a mapping of keys to values is expected, not a list"),
    ("datasets=3", "datasets: a mapping"),
    ("datasets={}", None),
    ("datasets=null", "datasets"),
    ("run=[]", "run: a mapping of keys to values is expected, not a list"),
    ("run=fast", "run: a mapping of keys to values is expected, not 'fast'"),
    ("run=null", "run"),
    ("model=[]", "model: a mapping"),
    ("model=true", "model: a mapping"),
    ("paths=x", "paths: a mapping"),
    ("evaluation=[a]", "evaluation: a mapping"),
    ("curation=1.5", "curation: a mapping"),
    ("evaluation.generation=[1]", "evaluation.generation: a mapping"),
    ("datasets.shapes=3", "datasets.shapes: a mapping of keys to values is expected"),
    ("datasets.shapes=[]", "datasets.shapes: a mapping"),
    ("datasets.shapes=null", None),
    ("datasets.shapes.vis_processor=3", "datasets.shapes.vis_processor: a mapping"),
    ("datasets.shapes.vis_processor.train=[a]", "datasets.shapes.vis_processor.train: a mapping"),
    ("datasets.x=3", "datasets.x: a mapping"),
    # names of datasets
    (r"datasets.a\.b={reader: jsonl}", "datasets: 'a.b' cannot be a dataset's name"),
    ("datasets={'': {reader: jsonl}}", "datasets: '' cannot be a dataset's name"),
    ("datasets={'a b': {reader: jsonl}}", "datasets: 'a b' cannot be a dataset's name"),
    ("datasets={a.b: {reader: jsonl}}", "datasets: 'a.b' cannot be a dataset's name"),
    ("datasets={2017: {reader: jsonl}}", "datasets: 2017 cannot be a dataset's name"),
    (f"datasets.{'n' * 300}.reader=jsonl", "n.annotations is not set"),
    # lists and single values
    ("run.train_splits=[]", "run.train_splits: no split to train on"),
    ("run.train_splits=train", "run.train_splits: a list is expected, for example [a, b], not 'train'"),
    ("run.train_splits=[[train]]", "run.train_splits[0]: a single value is expected"),
    ("run.train_splits=[null]", "run.train_splits"),
    ("run.train_splits={train: 1}", "run.train_splits: a list is expected, for example [a, b], not a mapping"),
    ("run.valid_splits=val", "run.valid_splits: a list"),
    ("run.valid_splits=[]", None),
    ("run.trackers=tensorboard", "run.trackers: a list is expected, for example [a, b], not 'tensorboard'"),
    ("run.trackers=3", "run.trackers: a list"),
    ("run.trackers=null", "run.trackers"),
    ("evaluation.metrics=bleu", "evaluation.metrics: a list"),
    ("run.seed=[1]", "run.seed: a single value is expected, not a list"),
    ("model.precision={a: 1}", "model.precision: a single value is expected, not a mapping"),
    ("run.amp={a: 1}", "run.amp is gone; model.precision, auto here, decides"),
    ("model.vit_args=3", "model.vit_args: a mapping"),
    ("model.vit_args={1: {2: [3]}}", "model.vit_args.1"),
    ("model.vit_args={a: {b: [3]}}", None),
    ("datasets.shapes.batch_size=[2]", "run.batch_size"),
    ("datasets.shapes.batch_size=null", "datasets.shapes.batch_size"),
    # numbers
    (f"run.seed={HUGE}", "run.seed: an integer of 1,329 bits is too large"),
    (f"run.seed='{HUGE}'", "run.seed: an integer of 1,329 bits is too large"),
    (f"run.seed={'9' * 5000}", "run.seed"),
    (f"run.seed=0x{'f' * 5000}", "run.seed: an integer of 20,000 bits is too large"),
    ("run.seed=4294967296", "run.seed: 4294967296 should be at least 0 and at most"),
    ("run.seed=-1", "run.seed: -1 should be at least 0"),
    ("run.seed=1.5", "run.seed"),
    ("run.seed=.inf", "run.seed"),
    ("run.seed=true", "run.seed"),
    ("run.seed=", "run.seed"),
    (f"run.init_lr={HUGE}", "run.init_lr: an integer of 1,329 bits is too large"),
    ("run.init_lr='1e400'", "run.init_lr: inf should be a finite number"),
    (f"run.batch_size='{HUGE}'", "run.batch_size: an integer"),
    (f"model.precision=0x{'f' * 5000}", "model.precision: an integer of 20,000 bits"),
    (f"model.vit_args={{a: [0x{'f' * 5000}]}}", "model.vit_args.a[0]: an integer"),
    (f"run=0x{'f' * 5000}", "run: a mapping of keys to values is expected, not a number"),
    # references
    ("model.precision=${nothing}", "model.precision: Interpolation key 'nothing' not found"),
    ("run.amp=${nothing}", "run.amp is gone"),
    ("run.shard_llm=${nothing}", "run.shard_llm"),
    ("model.low_resource=${nothing}", "model.low_resource"),
    ("run.batch_size=${nothing}", "run.batch_size"),
    ("run.batch_size=${evaluation.batch_size}", None),
    ("model.precision=${model.low_resource}", "model.precision"),
    ("datasets.shapes.batch_size=${nothing}", "datasets.shapes.batch_size"),
    ("datasets.shapes.reader=${nothing}", "datasets.shapes.reader"),
    ("datasets.shapes.card=${nothing}", "datasets.shapes.card: Interpolation key 'nothing' not found"),
    ("datasets=${nothing}", "datasets: Interpolation key 'nothing' not found"),
    ("datasets.shapes=${nothing}", "datasets.shapes"),
    ("run=${nothing}", "run"),
    ("model=${nothing}", "model"),
    ("model.model_type=${nothing}", "model.model_type: Interpolation key 'nothing' not found"),
    ("model.arch=${nothing}", "model.arch"),
    ("run.evaluate=${nothing}", "run.evaluate"),
    ("run.seed=${run.seed}", "run.seed"),
    ("run.seed=${model}", "run.seed"),
    ("run.job_name=${nothing:x}", "run.job_name"),
    ("run.job_name=${oc.env:NOT_SET_ANYWHERE}", "run.job_name"),
    ("run.job_name=${asset}", "run.job_name"),
    ("run.job_name=${", "run.job_name"),
    ("run.seed=???", None),
    ("model.model_type=???", ""),
    # keys
    ("a..b=1", "'a..b' is no key; write KEY=VALUE"),
    ("=x", "'' is no key"),
    (".run.seed=1", "'.run.seed' is no key"),
    ("run.=1", "'run.' is no key"),
    ("run[=1", "'run[' is no key"),
    ("run]seed=1", "'run]seed' is no key"),
    ("run seed=1", "'run seed' is no key"),
    ("run[seed]=1", None),
    ("", "'' has no '='"),
    ("run.seed.deep=1", "run.seed: a single value is expected, not a mapping"),
    ("run.trackers.first=tensorboard", "run.trackers: a list"),
    ("run.seed=[", "run.seed"),
    ("run.seed=a: b: c", "run.seed"),
    ("run.seed=!!python/object:os.system x", "run.seed"),
    ("run.job_name=!!binary aGVsbG8=", "run.job_name"),
    ("run.job_name=2020-01-01", None),
    # depth
    (f"model.vit_args.a={'[' * DEEP}{']' * DEEP}", "too deeply"),
    (f"model.vit_args.a={'[' * 300}1{']' * 300}", ""),
    (f"run.seed={'{a: ' * 300}1{'}' * 300}", ""),
    (f"{'a.' * DEEP}b=1", ""),
    # texts that are paths or names
    (r'run.job_name="a\0b"', "run.job_name: 'a\\x00b' has a character"),
    (r'run.job_name="\ud800"', "run.job_name"),
    ("run.run_dir=''", "run.run_dir: an empty path"),
    ("model.model_type=''", None),
    (r'model.model_type="a\nb"', "no card 'a\\nb'"),
    (f"model.model_type={'x' * 300}", "model.model_type: no card"),
    (f"model.model_type={'x' * 300}.yaml", "does not exist"),
    (f"datasets.shapes.annotations={'x' * 300}", "datasets.shapes.annotations"),
    (f"model.llama_model={'x' * 300}", "model.llama_model"),
    ("datasets.shapes.card=.", "datasets.shapes.card: no card '.'"),
    ("datasets.shapes.card=[a]", "datasets.shapes.card: a single value"),
    ("model.model_type=/", "model.model_type: no card"),
]
"""Options, and a part of the message; None: they work, as far as a dry run shows; "": either."""
FILES = [
    ("", None),
    ("hello", "hello"),
    ("3", "not readable as YAML"),
    ("- run", "a mapping of keys to values is expected at the top, not a list"),
    ("null: 3", ""),
    ("1: 2", "1"),
    ("true: {a: 1}", ""),
    ("? [a, b]\n: 3", "not readable as YAML"),
    ("run: &x [*x]", ""),
    ("a: &x {b: *x}", ""),
    ("run: {seed: 1, seed: 2}", ""),
    ("run:\nmodel:\ndatasets:\npaths:\n", None),
    ("models:\n", "models: unknown key; did you mean 'model'?"),
    ("run: !!set {a, b}", ""),
    ("run: {seed: !!timestamp 2020-01-01}", ""),
    ("run: {{a: 1}: 2}", "not readable as YAML"),
    ("run: {null: 2}", ""),
    ("run: {1: 2}", "unknown key"),
    ("run: {seed: 1}\n---\nrun: {seed: 2}", "not readable as YAML"),
    ("\ufeffrun: {seed: 1}", None),
    ("run: {job_name: ä}", None),
    ("run: {seed: \t1}", ""),
    ("\trun: 1", "not readable as YAML"),
    ("%YAML 9.9\n---\nrun: 1", ""),
    ("<<: 3", ""),
    ("<<: {run: {seed: 3}}", None),
    (f"model: {'[' * DEEP}{']' * DEEP}", "too deeply"),
    ("datasets: {flickr30k: {card: }}", None),
    ("datasets: [flickr30k]", "datasets: a mapping"),
    ("datasets: flickr30k", "datasets: a mapping of keys to values is expected, not 'flickr30k'"),
]
"""Content of a YAML file, and a part of the message, as above."""


class Reached(BaseException):
    """A dry run came to the model's large files."""


def load(path: Path, *options: str) -> str | None:
    """The message of the error at loading; None: there is none."""
    try:
        load_config(path, options)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def check(message: str | None, part: str | None) -> None:
    if part is None:
        assert message is None
    elif part:
        assert message is not None and part in message


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.make(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True)
def stop_before_the_model(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(train_module, "build_model", reached)
    monkeypatch.chdir(project.folder)


@pytest.mark.parametrize(("option", "part"), OPTIONS, ids=[option[:40] for option, _ in OPTIONS])
def test_odd_options(project: Project, option: str, part: str | None) -> None:
    message = load(project.folder / "config.yaml", option)
    if message is not None:
        check(message, part)
        return
    try:
        project.train_here(option, dry_run=True)
    except MiniGPT4Error as error:
        assert "\n" not in str(error)
        if part:
            assert part in str(error)
        return
    except Reached:
        pass
    assert not part


@pytest.mark.parametrize(("text", "part"), FILES, ids=[text[:30] for text, _ in FILES])
def test_odd_files(tmp_path: Path, text: str, part: str | None) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    message = load(path)
    check(message, part)
    assert message is None or message.startswith(str(path))


@pytest.mark.parametrize("text", ["- a", "3", "annotations: ${nothing}", "reader: [a]", "vis_processor: 3", "a: b: c"])
def test_odd_cards(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text(f"datasets: {{birds: {{card: {tmp_path / 'card.yaml'}}}}}")
    message = load(tmp_path / "run.yaml")
    assert message is not None and message.startswith(str(tmp_path / "card.yaml"))
