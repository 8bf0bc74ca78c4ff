"""Files of the original MiniGPT-4, its fork and a guide, by their key sets: what the converter makes of them loads and
trains on what the original would have trained on; and the ordinary loader names all that is gone at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import PROJECT
from minigpt4.common.schema import EvaluationTask, LowResource
from minigpt4.conversation.template import PromptEncoder, configured_template
from minigpt4.datasets.builders import build_datasets
from minigpt4.from_upstream import convert, main
from tests.ascii_tokenizer import AsciiTokenizer
from tests.datasets.public_layouts import CARDS
from tests.datasets.shards.conftest import write_shard

CAPTION = "The image shows a Man (John) in Paris. He holds a sign: It is 5:00 pm!"
CHAT = {"end_sym": "###", "prompt_path": "prompts/alignment.txt", "prompt_template": "###Human: {} ###Assistant: "}
LLAMA2 = {"end_sym": "</s>", "prompt_path": "prompts/alignment.txt", "prompt_template": "[INST] {} [/INST] "}
V2 = {"arch": "minigpt_v2", "model_type": "pretrain", "end_sym": "</s>", "lora_r": 64, "lora_alpha": 16}
OLD_RUN = {"evaluate": False, "device": "cuda", "world_size": 1, "dist_url": "env://", "distributed": True}
EVALUATED = {"eval_file_path": "e.json", "img_path": "img", "max_new_tokens": 20, "batch_size": 10}


def dataset(image: str = "blip2_image_train", size: int = 224, **more: Any) -> dict[str, Any]:
    image_processor = {"train": {"name": image, "image_size": size}}
    return {"vis_processor": image_processor, "text_processor": {"train": {"name": "blip_caption"}}} | more


def vicuna(**more: Any) -> dict[str, Any]:
    return {"arch": "minigpt4", "model_type": "pretrain_vicuna0"} | more


def llama2(**more: Any) -> dict[str, Any]:
    return {"arch": "minigpt4", "model_type": "pretrain_llama2"} | more


def guide(**more: Any) -> dict[str, Any]:
    return {"arch": "mini_gpt4", "model_type": "pretrain_vicuna", "freeze_vit": True, "freeze_qformer": True} | more


def training(**more: Any) -> dict[str, Any]:
    rates = {"lr_sched": "linear_warmup_cosine_lr", "init_lr": 3e-5, "min_lr": 1e-5, "warmup_lr": 1e-6}
    steps = {"weight_decay": 0.05, "max_epoch": 5, "iters_per_epoch": 200, "num_workers": 4, "warmup_steps": 200}
    place = {"seed": 42, "output_dir": "output/x", "amp": True, "resume_ckpt_path": None, "train_splits": ["train"]}
    return {"task": "image_text_pretrain"} | rates | steps | place | OLD_RUN | more


TWO = {"laion": dataset(batch_size=64, sample_ratio=115), "cc_sbu": dataset(batch_size=64, sample_ratio=14)}
OF_GUIDE = {"laion": dataset(sample_ratio=115), "cc_sbu": dataset(sample_ratio=14)}
SIZED = {"batch_size_train": 16, "batch_size_eval": 2}
ALIGN = {"cc_sbu_align": dataset(batch_size=12)}
ONLY_IMAGE = "[BOS]<ImageHere>*2[[{caption}\n]]"
PROMPT = "###Human: <Img><ImageHere>*2</Img> {prompt} ###Assistant: [[{caption}###]]"
V2_SIZES = {
    "multitask_conversation": (2, 50), "llava_conversation": (2, 30), "unnatural_instruction": (1, 10),
    "refvg": (6, 40),
    "llava_detail": (4, 20), "llava_reason": (4, 80), "flickr_grounded_caption": (2, 80),
    "flickr_CaptionToPhrase": (2, 80), "flickr_ObjectToPhrase": (2, 80), "coco_caption": (6, 10),
    "textcaps_caption": (6, 30), "refcoco": (6, 25), "refcocop": (6, 25), "refcocog": (6, 25), "invrefcoco": (6, 10),
    "invrefcocop": (6, 10), "invrefcocog": (6, 10), "coco_vqa": (6, 15), "ok_vqa": (6, 8), "aok_vqa": (6, 12),
    "gqa": (6, 50), "ocrvqa": (6, 30),
}  # fmt: skip
"""Batch size and ratio of each dataset of the published recipe."""
V2_DATASETS = {name: dataset(size=448, batch_size=size, sample_ratio=ratio) for name, (size, ratio) in V2_SIZES.items()}
TRAINED = {
    "stage1": ({"model": vicuna(), "datasets": TWO, "run": training(wandb_log=True)}, ONLY_IMAGE),
    "llama2_stage1": ({"model": llama2(), "datasets": TWO, "run": training(wandb_log=True)}, ONLY_IMAGE),
    "guide_stage1": ({"model": guide(), "datasets": OF_GUIDE, "run": training(**SIZED)}, ONLY_IMAGE),
    "stage2": (
        {"model": vicuna(max_txt_len=160, ckpt="c.pth", **CHAT), "datasets": ALIGN, "run": training(wandb_log=False)},
        "[BOS]" + PROMPT,
    ),
    "llama2_stage2": (
        {"model": llama2(max_txt_len=160, ckpt="c.pth", **LLAMA2), "datasets": ALIGN, "run": training(wandb_log=True)},
        "[BOS][INST] <Img><ImageHere>*2</Img> {prompt} [/INST] [[{caption}</s>]]",
    ),
    "guide_stage2": (
        {"model": guide(max_txt_len=160, ckpt="c.pth", **CHAT), "datasets": {"cc_sbu_align": dataset()},
         "run": training(**SIZED)},
        "[BOS]" + PROMPT,
    ),
    "fork_finetune": (
        {"model": vicuna(max_txt_len=300, ckpt="c.pth", **CHAT),
         "datasets": {"flickr30k_grounded_detail": dataset(batch_size=2)}, "run": training(wandb_log=False)},
        "[BOS]" + PROMPT,
    ),
}  # fmt: skip
EVAL_RUN = {"task": "image_text_pretrain"}
NOT_TRAINED = {
    "eval": {"model": vicuna(max_txt_len=160, low_resource=True, end_sym="###", ckpt="please set this value to ...",
                             prompt_template=CHAT["prompt_template"]),
             "datasets": {"cc_sbu_align": dataset("blip2_image_eval")}, "run": EVAL_RUN},
    "llama2_eval": {"model": llama2(max_txt_len=160, low_resource=True, end_sym="</s>", ckpt="please set this value",
                                    prompt_template=LLAMA2["prompt_template"]),
                    "datasets": {"cc_sbu_align": dataset("blip2_image_eval")}, "run": EVAL_RUN},
    "guide_eval": {"model": guide(max_txt_len=160, low_resource=True, ckpt="c.pth", **CHAT),
                   "datasets": {"cc_sbu_align": dataset("blip2_image_eval")}, "run": EVAL_RUN},
    "fork_eval": {"model": vicuna(max_txt_len=300, low_resource=True, llama_model="vicuna", lora_r=64, lora_alpha=16,
                                  **CHAT),
                  "datasets": {"flickr30k_grounded_detail": dataset()}, "evaluation_datasets": {"flickr30k": EVALUATED},
                  "run": EVAL_RUN | {"name": "flickr_eval"}},
    "v2_eval": {"model": V2 | {"max_txt_len": 500, "low_resource": True, "prompt_template": "[INST] {} [/INST]"},
                "datasets": {"cc_sbu_align": dataset("blip2_image_eval", 448)}, "run": EVAL_RUN},
    "v2_benchmarks": {"model": V2 | {"max_txt_len": 500, "low_resource": False, "llama_model": "", "ckpt": "",
                                     "prompt_template": "[INST] {} [/INST]"},
                      "datasets": {"cc_sbu_align": dataset("blip2_image_eval", 448)},
                      "evaluation_datasets": dict.fromkeys(("refcoco", "gqa", "vizwiz", "hm"), EVALUATED),
                      "run": EVAL_RUN | {"name": "v2", "save_path": "results"}},
    "v2_finetune": {"model": V2 | {"max_txt_len": 1024, "image_size": 448, "llama_model": "llama", "ckpt": "c.pth",
                                   "use_grad_checkpoint": True, "chat_template": True},
                    "datasets": {"refvg": dataset(size=448, batch_size=6, sample_ratio=40),
                                 "llava_detail": dataset(size=448, batch_size=4, sample_ratio=20)},
                    "run": training(wandb_log=True)},
}  # fmt: skip


def converted(old: dict[str, Any], folder: Path) -> tuple[Path, str]:
    """The converter's output for a file with this content, as the command prints it."""
    (folder / "old.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    text = convert(yaml.safe_load((folder / "old.yaml").read_text())).text("title")
    (folder / "new.yaml").write_text(text)
    return folder / "new.yaml", text


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options that put small data with one caption in the place of each dataset."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.jpg")
    (tmp_path / "align.json").write_text(json.dumps({"annotations": [{"image_id": "1", "caption": CAPTION}]}))
    row = {"image_id": "1", "split": "train", "captions": [CAPTION], "grounded_caption": CAPTION, "filename": "1.jpg"}
    (tmp_path / "flickr.json").write_text(json.dumps([row]))
    members = {"jpg": (tmp_path / "1.jpg").read_bytes(), "json": json.dumps({"caption": CAPTION}).encode()}
    write_shard(tmp_path / "00000.tar", [("1", members)])
    files = {"cc_sbu_align": "align.json", "flickr30k_grounded_detail": "flickr.json"}
    options = [f"datasets.{name}.annotations={tmp_path / file}" for name, file in files.items()]
    options += [f"datasets.{name}.images={tmp_path}" for name in files]
    return options + [f"datasets.{name}.shards={tmp_path}/00000.tar" for name in ("laion", "cc_sbu")]


@pytest.mark.parametrize("name", TRAINED)
def test_a_converted_run_trains_on_what_the_original_did(name: str, data: list[str], tmp_path: Path) -> None:
    old, expected = TRAINED[name]
    path, _ = converted(old, tmp_path)
    cfg = load_config(path, [option for option in data if option.split(".")[1] in old["datasets"]]).config
    encoder = PromptEncoder(AsciiTokenizer(), configured_template(cfg.model), 2, cfg.model.max_txt_len)
    datasets = build_datasets(cfg.datasets, cfg.model, encoder, cfg.run.train_splits, seed=1, train=True)
    caption = CAPTION
    if "laion" in old["datasets"]:  # lower case, without punctuation, and cut to 32 tokens with its end
        caption = "the image shows a man john in paris he holds a sign it is 5 00 pm"[:32]
        expected = expected.replace("\n", "")
    for each in datasets.values():
        sample = each.sample(0, 0)
        shown = "".join(f"[[{text}]]" if target else text for text, target in encoder.labelled_segments(sample.encoded))
        assert shown == expected.format(caption=caption, prompt=sample.instruction.rpartition("</Img> ")[2])
    assert cfg.run.valid_splits == [] and cfg.run.max_grad_norm is None
    sizes = {"stage1": 64, "llama2_stage1": 64, "guide_stage1": 16, "guide_stage2": 16, "fork_finetune": 2}
    assert cfg.run.batch_size == sizes.get(name, 12)
    assert cfg.model.ckpt == old["model"].get("ckpt")
    assert cfg.model.has_qformer == ("llama2" not in name)
    assert cfg.run.trackers == (["wandb"] if old["run"].get("wandb_log") else [])


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_a_converted_file_without_training_loads(name: str, tmp_path: Path) -> None:
    old = NOT_TRAINED[name]
    path, text = converted(old, tmp_path)
    cfg = load_config(path).config
    assert cfg.model.arch == {"mini_gpt4": "minigpt4"}.get(old["model"]["arch"], old["model"]["arch"])
    assert cfg.model.low_resource == (LowResource.int8 if old["model"].get("low_resource") else LowResource.off)
    assert cfg.model.max_txt_len == old["model"]["max_txt_len"]
    if name.startswith("v2"):
        assert (cfg.model.lora.r, cfg.model.image_size, cfg.model.has_qformer) == (64, 448, False)
        assert (cfg.model.prompt_template, cfg.model.end_sym) == ("[INST] {} [/INST]", "</s>")
    else:
        assert cfg.model.lora.r == 0
    trained = old["datasets"] if "init_lr" in old["run"] else {}
    for left_out in [
        *({*old["datasets"]} - {*trained}),
        *(name for name in old.get("evaluation_datasets", {}) if name not in ("flickr30k", "vizwiz", "hm")),
    ]:
        assert f"datasets.{left_out}: " in text
    if name == "fork_eval":
        assert (cfg.evaluation.dataset, cfg.evaluation.batch_size) == ("flickr30k", 10)
        assert (cfg.datasets["flickr30k"].annotations, cfg.datasets["flickr30k"].images) == ("e.json", "img")
        assert cfg.evaluation.generation.max_new_tokens == 20 and cfg.run.job_name == "flickr_eval"
    if name == "v2_benchmarks":
        assert cfg.evaluation.output_dir == "results"
        assert (cfg.evaluation.dataset, cfg.evaluation.split) == ("vizwiz", "val")
        assert [cfg.datasets[name].reader for name in ("vizwiz", "hm")] == ["vqa", "hateful_memes"]
        for published in (cfg.datasets["vizwiz"], cfg.datasets["hm"]):
            assert (published.annotations, published.images, published.split) == ("e.json", "img", "val")
            assert published.task is EvaluationTask.vqa
        assert cfg.model.ckpt.endswith("minigptv2_checkpoint.pth") and "llama-2-7b-chat-hf" in cfg.model.llama_model


def test_minigpt_v2s_recipe_is_that_of_its_third_stage(tmp_path: Path) -> None:
    """The key set of minigptv2_finetune.yaml with all of its datasets: they build, and have the same ratios."""
    path, text = converted({"model": V2, "datasets": V2_DATASETS, "run": training()}, tmp_path)
    cards = {"flickr_CaptionToPhrase": "flickr_caption_to_phrase", "flickr_ObjectToPhrase": "flickr_object_to_phrase"}
    cfg = load_config(path, [f"paths.data_root={tmp_path}", "model.image_size=8"]).config
    shipped = load_config(PROJECT / "train_configs" / "minigptv2_stage3.yaml").config
    ratios = {cards.get(name, name): entry.sample_ratio for name, entry in cfg.datasets.items()}
    assert ratios == {name: entry.sample_ratio for name, entry in shipped.datasets.items()}
    assert cfg.run.batch_size == 4 and "# Left out:" in text and "datasets." not in text.partition("# Left out:")[2]
    for name in ratios:
        CARDS[name](tmp_path)
    for entry in cfg.datasets.values():
        entry.vis_processor.train.image_size = 8
    encoder = PromptEncoder(AsciiTokenizer(), configured_template(cfg.model), 2, cfg.model.max_txt_len)
    datasets = build_datasets(cfg.datasets, cfg.model, encoder, ["train"], seed=1, train=True)
    learnt = {name: datasets[name].sample(0, 0).answer for name in datasets}
    assert {learnt["coco_caption"], learnt["invrefcoco"]} <= {"a dog 1", "one dog 1", "left dog 1", "that dog 1"}
    # Lower case, too, is what the original makes of answers, but not of boxes and conversations.
    expected = {
        "textcaps_caption": "a sign says 1", "gqa": "no", "aok_vqa": learnt["aok_vqa"].lower(), "ocrvqa": "ann",
        "refcoco": "{<10><25><30><75>}", "refvg": "{<10><10><30><60>}", "llava_reason": "Answer 0 of 1.",
        "llava_conversation": "Answer 2 of 1.", "multitask_conversation": "Answer 1 of 1.",
        "flickr_grounded_caption": "<p>A man</p> {<1><10><50><60>} runs.",
        "flickr_ObjectToPhrase": "<p>A man</p> {<1><10><50><60>}", "unnatural_instruction": "2",
    }  # fmt: skip
    assert {name: learnt[name] for name in expected} == expected
    assert "How many at 1?" in datasets["coco_vqa"].sample(0, 0).instruction


def test_a_ratio_of_batches_becomes_one_of_samples(tmp_path: Path) -> None:
    two = {"laion": dataset(batch_size=6, sample_ratio=10), "cc_sbu": dataset(batch_size=2, sample_ratio=30)}
    path, text = converted({"model": vicuna(), "datasets": two, "run": training()}, tmp_path)
    cfg = load_config(path).config
    assert [cfg.datasets[name].sample_ratio for name in two] == [60, 60]
    assert cfg.run.batch_size == 3
    assert "sample_ratio: 60  # 10 of the batches, of 6 samples each" in text


def test_minigpt_v2_without_its_template(tmp_path: Path) -> None:
    old = {"model": V2, "datasets": {"cc_sbu": dataset()}, "run": training()}
    cfg = load_config(converted(old, tmp_path)[0]).config
    assert (cfg.model.prompt_template, cfg.model.max_txt_len) == ("{}", 300)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (vicuna() | {"image_size": 224, "num_query_token": 32}, {"has_qformer": True}),
        (guide() | {"image_size": 224, "llama_model": "my/vicuna"}, {"llama_model": "my/vicuna"}),
        (llama2() | {"has_qformer": False}, {"has_qformer": False, "end_sym": "</s>"}),
        ({"arch": "minigpt_v2", "image_size": 448, "lora_r": 8, "lora_alpha": 16}, {"image_size": 448}),
    ],
)
def test_a_card_of_a_model(card: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    dead = {"drop_path_rate": 0, "use_grad_checkpoint": False, "vit_precision": "fp16", "prompt": ""}
    path, text = converted({"model": card | dead, "preprocess": {"vis_processor": {}}}, tmp_path)
    arch = "minigpt_v2" if card["arch"] == "minigpt_v2" else "minigpt4"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"arch": arch, "model_type": str(path)}}))
    model = load_config(tmp_path / "run.yaml").config.model
    assert {key: getattr(model, key) for key in expected} == expected
    assert model.lora.r == (8 if arch == "minigpt_v2" else 0)
    assert "#   model.vit_precision: " in text and "#   preprocess: " in text


@pytest.mark.parametrize(
    ("name", "build_info", "expected"),
    [
        ("laion", {"storage": "/d/{00000..10488}.tar"}, {"shards": "/d/{00000..10488}.tar"}),
        ("cc_sbu_align", {"storage": "/d/"}, {"annotations": "/d/filter_cap.json", "images": "/d/image"}),
        ("flickr30k_grounded_detail", {"ann_path": "a.json", "image_path": "i"}, {"annotations": "a.json"}),
        ("refvg", {"data_dir": "/vg"}, {"annotations": "/vg", "images": "/vg", "reader": "visual_genome"}),
        (
            "invrefcocop",
            {"image_path": "/coco", "ann_path": "/refs", "dataset": "invrefcoco+", "splitBy": "unc"},
            {"annotations": "/refs/refcoco+/refs(unc).p", "images": "/coco", "reader": "identify"},
        ),
        (
            "coco_vqa",
            {"annotations": {"train": {"url": ["u"], "storage": ["a.json", "b.json"]}}, "images": {"storage": "/coco"}},
            {"annotations": ["a.json", "b.json"], "images": "/coco"},
        ),
        (
            "ok_vqa",
            {"annotations": {"train": {"storage": ["a.json"]}}, "images": {"storage": "/coco"}},
            {"annotations": "a.json", "images": "/coco"},
        ),
        (
            "flickr_ObjectToPhrase",
            {"image_path": "/f", "ann_path": "p.json"},
            {"annotations": "p.json", "images": "/f", "reader": "grounded"},
        ),
    ],
)
def test_a_card_of_a_dataset(name: str, build_info: dict[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    path, _ = converted({"datasets": {name: {"data_type": "images", "build_info": build_info}}}, tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"datasets": {name: {"card": str(path)}}}))
    loaded = load_config(tmp_path / "run.yaml").config.datasets[name]
    assert {key: getattr(loaded, key) for key in expected} == expected


def test_the_loader_names_all_that_is_gone_at_once_and_the_command(tmp_path: Path) -> None:
    for name, old in {**{key: value[0] for key, value in TRAINED.items()}, **NOT_TRAINED}.items():
        converted(old, tmp_path)
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "old.yaml")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'old.yaml'}: ") and "\n" not in message, name
        assert f"`minigpt4 from-upstream {tmp_path / 'old.yaml'} > NEW.yaml`" in message
        assert f"model.model_type: {old['model']['model_type']} (write " in message
        gone = [f"run.{key}" for key in ("dist_url", "world_size", "name", "save_path") if key in old["run"]]
        gone += [f"model.{key}" for key in ("lora_r", "freeze_vit", "chat_template") if key in old["model"]]
        assert [key for key in gone if f"{key} (" not in message] == [], name
    with pytest.raises(ConfigError, match=r"^--options: .*run\.world_size \(torchrun decides it") as caught:
        load_config(None, ["run.world_size=2"])
    assert "from-upstream" not in str(caught.value)


def test_an_old_card_named_by_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({"model": {"arch": "minigpt4", "image_size": 224}}))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"model_type": str(tmp_path / "card.yaml")}}))
    with pytest.raises(ConfigError, match=r"card\.yaml: the keys of a card stand at the top, not below 'model'"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "env: {cache_root: x}\n",
        "[1]\n",
        "model: [\n",
        "datasets: {vizwiz: {}}\n",
        "model: 5\n",
        "datasets: {cc_sbu: 3}\n",
    ],
)
def test_what_cannot_be_converted(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "old.yaml")])
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path / 'old.yaml'}: ") and printed.out == ""


def test_the_published_files_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MINIGPT4_SHARED") or default) / "upstream_yaml"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    files = [path for path in folder.rglob("minigpt*.yaml") if "card" not in str(path)]
    for file in files:
        main([str(file)])
        (tmp_path / "new.yaml").write_text(capsys.readouterr().out)
        load_config(tmp_path / "new.yaml")
    assert len(files) >= 14
