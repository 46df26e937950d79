"""The model card says what the run's files say, and publishing uploads it with the model and
nothing else.
"""

import base64
import json
import re
import shutil

import pytest
from helpers.local_hub import HubHandler, serving
from huggingface_hub import constants

from tinyllm_lib.dataset import read_manifest
from tinyllm_lib.evaluate import Answer, ExamResult
from tinyllm_lib.model import Transformer, latest_checkpoint, step_folders, weights_fingerprint
from tinyllm_lib.share import export_gguf, model_card, publish
from tinyllm_lib.share.card import read_stages
from tinyllm_lib.share.hub import FILES
from tinyllm_lib.train import train

pytest_plugins = ["helpers.tiny_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tiny_config, pretrain_tokens, sft_tokens, tmp_path_factory):
    """A chat run that started from a pretrained one; its exam has a wrong answer with a bar and a
    line end in it.
    """
    root = tmp_path_factory.mktemp("runs")
    for kind, folder in (("pretrain", pretrain_tokens), ("sft", sft_tokens)):
        shutil.copytree(folder, root / "tokens" / kind)
    data = {"data_path": str(root / "tokens" / "pretrain")}
    base = train(tiny_config(root / "pretrain", **data))
    data = {"data_path": str(root / "tokens" / "sft"), "tokenizer_path": "", "init_from": str(base)}
    run = train(tiny_config(root / "chat", **data, steps=6, save_interval=3, keep_every=3))
    answers = [
        Answer("greeting", "你好", "你好", "你好！", True),
        Answer("fact_seen", "法国的首都？", "巴黎", "a|b\nc", False),
    ]
    of_these = {"weights": weights_fingerprint(latest_checkpoint(run)), "exam": "0"}
    ExamResult("chat", latest_checkpoint(run).name, "exam.jsonl", 0.1, answers, of_these).save(
        run / "exam.json"
    )
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy, for tests that change it; its config still names the data and the start of the first
    one.
    """
    return shutil.copytree(trained, tmp_path / "chat")


# ---- the card


def test_the_numbers_are_those_of_the_run_s_files(trained):
    card = model_card(trained, "me/my-model")
    checkpoint = latest_checkpoint(trained)
    assert f"of {Transformer.from_pretrained(checkpoint).num_parameters():,} parameters" in card
    for fact in ("2 layers of width 32", "a context of 32\ntokens", "a vocabulary of 400 tokens"):
        assert fact in card
    for kind in ("pretrain", "sft"):
        manifest = read_manifest(trained.parent / "tokens" / kind / "train")
        assert f"{manifest['documents']:,} documents, {manifest['tokens']:,} tokens" in card
        assert f"of which {manifest['supervised_tokens']:,} are learned" in card
    first, last = (
        [json.loads(line) for line in (trained.parent / name / "metrics.jsonl").open()][-1]
        for name in ("pretrain", "chat")
    )
    for step, row in ((12, first), (6, last)):
        assert f"step {step}, tokens {row['tokens']:,}, loss {row['loss']:,}, val_loss" in card
        assert f"val_bits_per_byte {row['val_bits_per_byte']:,}." in card
    assert card.index("**pretrain**") < card.index("**chat**")
    assert card.count("learning_rate 0.01") == 2


def test_the_exam_and_a_wrong_answer_are_shown(trained):
    card = model_card(trained)
    assert re.search("greeting +1/1 +100% +21% to 100%", card)
    assert "法国的首都？ 'a|b\\nc', expected '巴黎'" in card


def test_the_metadata_is_what_a_hub_reads(trained):
    import yaml

    for license in (None, "apache-2.0"):
        head = yaml.safe_load(model_card(trained, license=license).split("---")[1])
        assert head == {
            "language": "zh",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["tinyllm", "llama"],
            **({"license": license} if license else {}),
        }
    assert "No licence was chosen" in model_card(trained)
    assert "No licence was chosen" not in model_card(trained, license="mit")


def test_no_path_of_this_machine_is_in_it(trained):
    assert str(trained.parent) not in model_card(trained) and "/tmp" not in model_card(trained)


def test_an_earlier_checkpoint_has_its_own_curve_and_no_exam(trained):
    first = step_folders(trained)[0]
    card = model_card(first)
    assert first.name == "step_000003"
    assert [metrics[-1]["step"] for _, _, metrics in read_stages(first)] == [12, 3]
    assert "Not taken: chat/exam.json is not the exam of these weights" in card


def test_metrics_with_an_evaluation_between_two_log_lines_and_a_half_written_line_are_read(
    run, trained
):
    evaluation = '{"step": 2, "tokens": 9, "val_loss": 9.5, "val_bits_per_byte": 3.5}\n'
    (run / "metrics.jsonl").write_text(
        evaluation + (trained / "metrics.jsonl").read_text(encoding="utf-8") + '{"step": 6, "tok'
    )
    curve = model_card(run)
    assert curve == model_card(trained)


def test_shards_that_changed_since_are_not_described(run, trained):
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["data_path"] = str(trained.parent / "tokens" / "pretrain")
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    assert "not recorded, for its token shards changed: shards (was " in model_card(run)
    config["data_path"] = str(run / "gone")
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    assert "its token shards changed: they are no longer where they were." in model_card(run)


def test_an_exam_of_other_weights_of_the_same_step_is_left_out(run):
    saved = json.loads((run / "exam.json").read_text("utf-8"))
    (run / "exam.json").write_text(
        json.dumps({**saved, "made_from": {**saved["made_from"], "weights": "of another seed"}}),
        "utf-8",
    )
    card = model_card(run)
    assert (
        "Not taken: chat/exam.json is not the exam of these weights, weights (was of"
        " another seed" in card
    )
    assert "greeting" not in card and f"`{weights_fingerprint(latest_checkpoint(run))}`" in card


def test_a_base_that_was_trained_anew_since_is_not_described(run, tiny_config, tmp_path):
    config = json.loads((run / "config.json").read_text("utf-8"))
    base = train(tiny_config(tmp_path / "other", seed=1, steps=2))
    (run / "config.json").write_text(json.dumps({**config, "init_from": str(base)}), "utf-8")
    assert [stage[0].name for stage in read_stages(latest_checkpoint(run))] == ["chat"]


def test_a_model_without_its_run_says_so(trained, tmp_path):
    folder = shutil.copytree(latest_checkpoint(trained), tmp_path / "alone")
    card = model_card(folder)
    assert "# alone" in card and "a model without the run that made it" in card


# ---- publishing


class Hub(HubHandler):
    """As much of huggingface.co as an upload of small files asks for."""

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append(self.path)
        hub.keys.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            hub.repository = json.loads(body)
            answer = {"url": f"http://127.0.0.1:{hub.server_port}/me/my-model"}
        elif "/preupload/" in self.path:
            answer = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
            }
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            hub.files = {
                v["path"]: base64.b64decode(v["content"])
                for v in (line["value"] for line in lines if line["key"] == "file")
            }
            answer = {"commitUrl": "http://127.0.0.1/me/my-model/commit/0", "commitOid": "0" * 40}
        else:
            answer = {"errors": [], "warnings": []}
        self.send_json(hub.status, answer if hub.status == 200 else {"error": "no"})


@pytest.fixture
def hub(monkeypatch):
    with serving(Hub) as server:
        server.asked, server.keys, server.files, server.status = [], set(), {}, 200
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # all other tests are offline
        yield server


def test_publish_uploads_the_model_with_its_card_and_keeps_the_trainer_s_state(
    hub, trained, tmp_path
):
    export_gguf(trained, tmp_path / "chat.gguf")
    url = publish(
        trained, "me/my-model", license="apache-2.0", extra_files=[tmp_path / "chat.gguf"]
    )
    assert url.endswith("/me/my-model")
    assert {key: hub.repository[key] for key in ("organization", "name", "visibility")} == {
        "organization": "me",
        "name": "my-model",
        "visibility": "private",
    }
    assert set(hub.files) == {*FILES, "README.md", "chat.gguf"}
    assert hub.files["README.md"].decode() == model_card(
        trained, "me/my-model", license="apache-2.0"
    )
    assert (
        hub.files["model.safetensors"]
        == (latest_checkpoint(trained) / "model.safetensors").read_bytes()
    )
    assert hub.keys == {"Bearer hf_of_a_test"}


def test_public_only_when_asked(hub, trained):
    publish(trained, "me/my-model", private=False)
    assert hub.repository.get("visibility", "public") == "public"


def test_what_a_hub_says_is_passed_on(hub, trained):
    hub.status = 401
    with pytest.raises(
        OSError,
        match="401",
    ):
        publish(trained, "me/my-model")


class ModelScope(HubHandler):
    """As much of modelscope.cn as an upload asks for: a new repository, blobs by checksum, a
    commit.
    """

    def do_POST(self):
        hub, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hub.keys.add(self.headers.get("Authorization"))
        here, status, answer = (
            f"http://127.0.0.1:{hub.server_port}",
            hub.status,
            {"Code": 200, "Success": True, "Data": {}},
        )
        if self.path == "/api/v1/models" and hub.created:
            status, answer = (
                400,
                {"Code": 10010101001, "Success": False, "Message": "model already exists"},
            )
        elif self.path == "/api/v1/models":
            hub.created.append(body)
        elif self.path.endswith("/info/lfs/objects/batch"):
            upload = [
                {**one, "actions": {"upload": {"href": f"{here}/blob/{one['oid']}"}}}
                for one in body["objects"]
            ]
            answer["Data"] = {"objects": upload}
        elif self.path == "/api/v1/repos/models/me/my-model/commit/master":
            for action in body["actions"]:
                content = (
                    base64.b64decode(action["content"])
                    if action["type"] == "normal"
                    else hub.blobs[action["sha256"]]
                )
                hub.files[action["path"]] = content
        self.send_json(status, answer)

    def do_PUT(self):
        self.server.blobs[self.path.removeprefix("/blob/")] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self.send_json(200, {})


@pytest.fixture
def modelscope(monkeypatch, tmp_path):
    pytest.importorskip(
        "modelscope.hub.api", reason="modelscope is not installed: make setup EXTRAS=hub"
    )
    with serving(ModelScope) as server:
        server.created, server.keys, server.files, server.blobs, server.status = (
            [],
            set(),
            {},
            {},
            200,
        )
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-of-a-test")
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.mark.parametrize(("license", "named"), [("mit", "mit"), (None, "Other")])
def test_modelscope_gets_the_same_folder_and_no_licence_that_nobody_chose(
    modelscope, trained, license, named
):
    url = publish(trained, "me/my-model", "modelscope", license=license)
    assert url == f"http://127.0.0.1:{modelscope.server_port}/models/me/my-model"
    # 1: private
    assert modelscope.created == [
        {"Path": "me", "Name": "my-model", "Visibility": 1, "License": named}
    ]
    assert set(modelscope.files) == {*FILES, "README.md"}
    assert modelscope.files["README.md"].decode() == model_card(
        trained, "me/my-model", license=license
    )
    assert (
        modelscope.files["model.safetensors"]
        == (latest_checkpoint(trained) / "model.safetensors").read_bytes()
    )
    assert modelscope.keys == {"Bearer ms-of-a-test"}


def test_what_modelscope_says_is_passed_on(modelscope, trained):
    modelscope.status = 401
    with pytest.raises(
        Exception,
        match="(?i)401|unauthorized|login|token",
    ):
        publish(trained, "me/my-model", "modelscope")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ("me/my-model", "github"),
            ValueError,
            "hub is 'github', expected huggingface or modelscope",
        ),
    ],
)
def test_what_cannot_be_published_is_refused(arguments, error, message, trained):
    with pytest.raises(error, match=message):
        publish(trained, *arguments)


def test_a_missing_extra_file_is_named_before_anything_is_sent(hub, trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.gguf"):
        publish(trained, "me/my-model", extra_files=[tmp_path / "nothing.gguf"])
    assert hub.asked == []
