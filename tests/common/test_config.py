from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import CONFIGS, PROJECT, require_path
from minigpt4.common.schema import LowResource, Precision, Target

RUN_CONFIGS = sorted([*PROJECT.glob("train_configs/*.yaml"), *PROJECT.glob("eval_configs/*.yaml")])


@pytest.fixture
def run_yaml(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def message_of(path: Path, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestLayers:
    def test_later_layers_win(self, run_yaml) -> None:
        path = run_yaml("datasets: {flickr30k: {batch_size: 3}}\nrun: {seed: 1, max_epoch: 7}")
        loaded = load_config(path, ["run.seed=2"])
        config, origins = loaded.config, loaded.origins
        assert (config.run.seed, origins["run.seed"]) == (2, "--options")
        assert (config.run.max_epoch, origins["run.max_epoch"]) == (7, str(path))
        assert config.run.batch_size == 3  # older files have it in a dataset
        assert config.datasets["flickr30k"].target is Target.joined  # the card's; the schema says one
        assert origins["datasets.flickr30k.target"] == "configs/datasets/flickr30k.yaml"
        assert origins["model.llama_model"] == "configs/models/minigpt4_vicuna0_7b.yaml"
        assert origins["model.prompt_path"] == "configs/default.yaml"

    def test_rows_show_every_value_with_its_layer(self, run_yaml) -> None:
        rows = {key: (value, layer) for key, value, layer in load_config(run_yaml("run: {seed: 1}")).rows()}
        assert rows["run.seed"][0] == 1
        assert rows["run.weight_decay"] == (0.05, "schema default")
        assert rows["model.precision"] == ("auto", "schema default")

    def test_an_option_selects_the_model_card(self, run_yaml) -> None:
        loaded = load_config(run_yaml("run: {seed: 1}"), ["model.model_type=vicuna0_13b"])
        assert loaded.config.model.llama_model == "weights/vicuna-13b"
        assert loaded.origins["model.llama_model"] == "configs/models/minigpt4_vicuna0_13b.yaml"

    def test_a_card_by_path_and_under_another_name(self, run_yaml, tmp_path: Path) -> None:
        card = run_yaml("reader: jsonl\nannotations: a.jsonl\nsample_ratio: 5", "mine.yaml")
        cfg = load_config(run_yaml(f"datasets: {{a: {{card: {card}}}, b: {{card: flickr30k}}}}")).config
        assert (cfg.datasets["a"].reader, cfg.datasets["a"].sample_ratio) == ("jsonl", 5)
        assert cfg.datasets["b"].reader == "flickr30k"

    def test_environment_variables_move_the_roots(self, run_yaml, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINIGPT4_DATA", "/elsewhere")
        cfg = load_config(run_yaml("datasets: {flickr30k: {}}")).config
        assert cfg.datasets["flickr30k"].annotations == "/elsewhere/flickr30k/flickr30k.json"

    def test_an_option_moves_a_root_too(self, run_yaml) -> None:
        cfg = load_config(run_yaml("datasets: {flickr30k: {}}"), ["paths.data_root=x"]).config
        assert cfg.datasets["flickr30k"].images == "x/flickr30k/images"

    @pytest.mark.parametrize(
        ("old", "precision"),
        [
            ("run: {amp: true}", "auto"),
            ("run: {amp: auto}", "bfloat16"),
            ("run: {amp: bf16}", "bfloat16"),
            ("run: {amp: off}", "float32"),
            ("{run: {amp: fp16}, evaluation: {precision: float16}}", "float16"),
            ("evaluation: {precision: auto}", "float32"),
        ],
    )
    def test_older_places_of_the_number_format_may_say_the_same(self, run_yaml, old: str, precision: str) -> None:
        loaded = load_config(run_yaml(old), [f"model.precision={precision}"])
        assert loaded.config.model.precision is Precision(precision)
        assert "amp" not in loaded.resolved["run"] and "precision" not in loaded.resolved["evaluation"]

    @pytest.mark.parametrize(
        ("old", "key", "advice"),
        [
            ("run: {amp: false}", "run.amp", "float32"),
            ("run: {amp: fp16}", "run.amp", "float16"),
            ("run: {amp: half}", "run.amp", "auto or float32 or bfloat16 or float16"),
            ("run: {amp: null}", "run.amp", "auto or float32"),
            ("{run: {amp: true}, evaluation: {precision: bfloat16}}", "evaluation.precision", "bfloat16"),
        ],
    )
    def test_older_places_of_the_number_format_that_disagree(self, run_yaml, old: str, key: str, advice: str) -> None:
        path = run_yaml(old)
        message = message_of(path)
        assert message.startswith(f"{path}: {key} is gone; model.precision, auto here, decides")
        assert f"write model.precision: {advice}" in message
        assert message_of(run_yaml("run: {seed: 1}"), "run.amp=fp16", "model.precision=bfloat16").startswith(
            "--options: run.amp is gone; model.precision, bfloat16 here, decides"
        )

    def test_low_resource_is_a_switch_too(self, run_yaml) -> None:
        assert load_config(run_yaml("model: {low_resource: true}")).config.model.low_resource is LowResource.int8

    def test_enums_are_written_as_users_write_them(self, run_yaml) -> None:
        assert load_config(run_yaml("model: {low_resource: 4bit}")).resolved["model"]["low_resource"] == "4bit"


class TestErrors:
    def test_unknown_key(self, run_yaml) -> None:
        path = run_yaml("run: {max_epochs: 3}")
        message = message_of(path)
        assert str(path) in message and "run.max_epochs" in message and "did you mean 'max_epoch'?" in message

    def test_unknown_key_in_options(self, run_yaml) -> None:
        message = message_of(run_yaml("run: {seed: 1}"), "run.init_rl=1")
        assert message.startswith("--options: run.init_rl") and "'init_lr'" in message

    def test_unknown_key_of_a_dataset(self, run_yaml) -> None:
        message = message_of(run_yaml("datasets: {flickr30k: {sampleratio: 3}}"))
        assert "datasets.flickr30k.sampleratio" in message and "'sample_ratio'" in message

    def test_unknown_section(self, run_yaml) -> None:
        assert "did you mean 'model'?" in message_of(run_yaml("models: {}"))

    def test_wrong_type(self, run_yaml) -> None:
        path = run_yaml("run: {max_epoch: many}")
        message = message_of(path)
        assert str(path) in message and "run.max_epoch" in message and "many" in message

    def test_wrong_enum_value(self, run_yaml) -> None:
        assert "model.precision" in message_of(run_yaml("model: {precision: half}"))

    def test_unknown_cards(self, run_yaml) -> None:
        path = run_yaml("run: {seed: 1}")
        assert "did you mean 'vicuna0_7b'?" in message_of(path, "model.model_type=vicuna_7b")
        assert "did you mean 'flickr30k'?" in message_of(path, "datasets.mine.card=flickr30")

    def test_a_mandatory_value(self, run_yaml) -> None:
        message = message_of(run_yaml("datasets: {mine: {annotations: a.jsonl}}"))
        assert "datasets.mine.reader" in message and "mandatory" in message

    def test_a_removed_key_says_what_replaces_it(self, run_yaml) -> None:
        assert "write run.batch_size" in message_of(run_yaml("run: {batch_size_train: 2}"))

    def test_a_template_without_a_place(self, run_yaml) -> None:
        assert "model.prompt_template" in message_of(run_yaml("model: {prompt_template: 'Human:'}"))

    @pytest.mark.parametrize(
        ("option", "expected"),
        [
            ("run.weight_decay=nan", "run.weight_decay: nan should be a finite number"),
            ("run.init_lr=inf", "run.init_lr: inf should be a finite number"),
            ("run.warmup_lr=-1", "run.warmup_lr: -1.0 should be at least 0"),
            ("run.beta2=1", "run.beta2: 1.0 should be at least 0 and below 1"),
            ("run.batch_size=0", "run.batch_size: 0 should be at least 1"),
            ("run.max_grad_norm=0", "run.max_grad_norm: 0.0 should be above 0"),
            ("model.max_txt_len=0", "model.max_txt_len: 0 should be at least 1"),
            ("model.vit_blocks=0", "model.vit_blocks: 0 should be at least 1 and at most 1000"),
            (
                "datasets.flickr30k.val_fraction=1",
                "datasets.flickr30k.val_fraction: 1.0 should be at least 0 and below 1",
            ),
            ("datasets.flickr30k.sample_ratio=nan", "datasets.flickr30k.sample_ratio: nan should be a finite number"),
            ("datasets.flickr30k.sample_ratio=0", "datasets.flickr30k.sample_ratio: 0.0 should be above 0"),
            ("evaluation.generation.top_p=1.5", "evaluation.generation.top_p: 1.5 should be above 0 and at most 1"),
            ("curation.refine.timeout=0", "curation.refine.timeout: 0.0 should be above 0"),
        ],
    )
    def test_a_number_out_of_range(self, run_yaml, option: str, expected: str) -> None:
        assert message_of(run_yaml("datasets: {flickr30k: {}}"), option) == f"--options: {expected}"

    def test_values_that_contradict_each_other(self, run_yaml) -> None:
        message = message_of(run_yaml("evaluation: {limit: 3, fraction: 0.5}"))
        assert "evaluation.limit: fraction is set as well; choose one" in message

    def test_an_option_without_a_value(self, run_yaml) -> None:
        assert "write KEY=VALUE" in message_of(run_yaml("run: {seed: 1}"), "run.seed")

    @pytest.mark.parametrize("text", ["run: {seed: 1", "- a\n- b", "run: [\x00"])
    def test_broken_yaml(self, run_yaml, text: str) -> None:
        path = run_yaml(text)
        assert message_of(path).startswith(str(path))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert "does not exist" in message_of(tmp_path / "no.yaml")

    def test_a_missing_path_names_key_and_variable(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"model\.ckpt: .*no\.pth does not exist.*MINIGPT4_WEIGHTS"):
            require_path(str(tmp_path / "no.pth"), "model.ckpt")
        with pytest.raises(ConfigError, match=r"model\.ckpt is not set"):
            require_path(None, "model.ckpt")
        with pytest.raises(ConfigError, match=r"file .* does not exist \(a folder of that name does\)"):
            require_path(str(tmp_path), "model.ckpt")


class TestBatchSize:
    """It is one number for all datasets; files of the ancestors have it in each of them."""

    @pytest.mark.parametrize("setting", ["batch_size", "eval_batch_size"])
    def test_the_old_place_counts(self, run_yaml, setting: str) -> None:
        path = run_yaml(f"datasets: {{flickr30k: {{{setting}: 3}}, cc_sbu_align: {{{setting}: 3}}}}")
        loaded = load_config(path)
        assert getattr(loaded.config.run, setting) == 3
        assert loaded.origins[f"run.{setting}"] == str(path)
        assert setting not in loaded.resolved["datasets"]["flickr30k"]

    def test_both_places_may_say_the_same(self, run_yaml) -> None:
        path = run_yaml("datasets: {flickr30k: {batch_size: 3}}\nrun: {batch_size: 3}")
        assert load_config(path).config.run.batch_size == 3

    @pytest.mark.parametrize(
        "text",
        [
            "datasets: {flickr30k: {batch_size: 3}}\nrun: {batch_size: 4}",
            "datasets: {cc_sbu_align: {batch_size: 4}, flickr30k: {batch_size: 3}}",
        ],
    )
    def test_places_that_disagree_are_named(self, run_yaml, text: str) -> None:
        message = message_of(run_yaml(text))
        assert "datasets.flickr30k.batch_size is 3" in message and " is 4" in message
        assert "set run.batch_size" in message

    def test_a_later_layer_overrides_the_same_place(self, run_yaml) -> None:
        path = run_yaml("datasets: {flickr30k: {batch_size: 3}}")
        assert load_config(path, ["datasets.flickr30k.batch_size=5"]).config.run.batch_size == 5


class TestShippedFiles:
    @pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
    def test_run_configs_load(self, path: Path) -> None:
        config = load_config(path).config
        # A chat needs no dataset.
        assert config.datasets or path.name in ("minigpt4_eval.yaml", "minigptv2_eval.yaml")
        assert config.model.llama_model

    @pytest.mark.parametrize("name", ["train_configs/quickstart.yaml", "eval_configs/minigptv2_eval.yaml"])
    def test_what_a_run_writes_loads_again(self, run_yaml, name: str) -> None:
        loaded = load_config(PROJECT / name)
        written = run_yaml(yaml.safe_dump(loaded.resolved))
        assert load_config(written).config == loaded.config

    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("models/*.yaml")), ids=lambda path: path.stem)
    def test_model_cards_load(self, run_yaml, path: Path) -> None:
        arch, _, model_type = path.stem.partition("_")
        loaded = load_config(run_yaml(f"model: {{arch: {arch}, model_type: {model_type}}}"))
        assert f"configs/models/{path.name}" in loaded.origins.values()

    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("datasets/*.yaml")), ids=lambda path: path.stem)
    def test_dataset_cards_load(self, run_yaml, path: Path) -> None:
        loaded = load_config(run_yaml(f"datasets: {{{path.stem}: {{}}}}"))
        assert f"configs/datasets/{path.name}" in loaded.origins.values()

    def test_the_published_recipe(self) -> None:
        cfg = load_config(PROJECT / "train_configs" / "minigpt4_flickr_finetune.yaml").config
        run = cfg.run
        assert (run.init_lr, run.min_lr, run.warmup_lr) == (3e-5, 1e-5, 1e-6)
        assert (run.warmup_steps, run.iters_per_epoch, run.max_epoch) == (200, 500, 5)
        assert (run.weight_decay, run.beta2, cfg.model.max_txt_len) == (0.05, 0.999, 300)
        assert cfg.datasets["flickr30k"].target is Target.joined


def test_a_path_is_not_built_from_what_is_not_set(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("run: {run_dir: null}\nevaluation: {output_dir: '${run.run_dir}/evaluation'}\n")
    with pytest.raises(ConfigError, match=r"evaluation\.output_dir: .* needs run\.run_dir, which is not set"):
        load_config(config)
    assert load_config(config, ["run.run_dir=here"]).config.evaluation.output_dir == "here/evaluation"
