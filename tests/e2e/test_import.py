"""xgen-model import as people run it: what it writes is checked and served by the program."""
import pathlib
import subprocess

import pytest

from process import PATIENCE, PROGRAM, ROOT, Process, run

DEMO = ROOT / "models/demo"
COMPOSE = """\
services:
  chat:
    image: vllm/vllm-openai:v0.11.0
    command: --model /models/demo --served-model-name chat default --max-model-len 512 --max-num-seqs 4 --api-key sk-very-secret-key
    volumes: ["./weights:/models:ro"]
    ports: ["8001:8000"]
"""


@pytest.fixture
def folder(tmp_path):
    """compose.yaml, with the model that its volume names."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/demo").symlink_to(DEMO)
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    return tmp_path


def test_what_is_imported_is_checked_and_served(folder):
    (folder / "new").mkdir()
    done = run("import", folder / "compose.yaml", "-o", folder / "new/models.yaml", "--report", folder / "new/report.md")
    assert done.returncode == 0 and done.stdout == done.stderr == ""
    yaml, report = (folder / "new/models.yaml").read_text(), (folder / "new/report.md").read_text()
    assert "source: ../weights/demo" in yaml and "port: 8001" in yaml
    assert "## What maps" in report and "## What changes meaning" in report
    assert "very-secret" not in yaml + report
    checked = run("check", "--config", folder / "new/models.yaml")
    assert checked.returncode == 0 and "valid" in checked.stdout, checked.stderr
    with Process("--config", folder / "new/models.yaml") as process:
        for name in ("chat", "default"):
            body = {"model": name, "messages": [{"role": "user", "content": "How do I add a model?"}]}
            assert "models.yaml" in process.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert process.get("/v1/models").json()["data"][0]["max_model_len"] == 512


def test_a_ray_service_is_checked(tmp_path):
    (tmp_path / "ray.yaml").write_text(f"""\
apiVersion: ray.io/v1
kind: RayService
metadata: {{name: llms}}
spec:
  serveConfigV2: |
    applications:
      - name: llms
        import_path: ray.serve.llm:build_openai_app
        args:
          llm_configs:
            - model_loading_config: {{model_id: chat, model_source: {DEMO}}}
              engine_kwargs: {{max_model_len: 512, tensor_parallel_size: 2}}
              deployment_config: {{autoscaling_config: {{min_replicas: 0, max_replicas: 2}}}}
""")
    done = run("import", tmp_path / "ray.yaml", "-o", tmp_path / "models.yaml")
    assert done.returncode == 0 and "`engine_kwargs.tensor_parallel_size 2` (ray.yaml:12)" in done.stderr
    checked = run("check", "--config", tmp_path / "models.yaml")
    assert checked.returncode == 0 and "chat" in checked.stdout, checked.stderr


def test_words_stdin_and_outputs(folder):
    done = run("import", "--", "vllm", "serve", DEMO, "--port", "9000", "--frobnicate")
    assert done.returncode == 0 and f"source: {DEMO}" in done.stdout and "port: 9000" in done.stdout
    assert "## Unknown\n\n- `--frobnicate`" in done.stderr
    done = subprocess.run([PROGRAM, "import", "-", "--for", "container"], input=COMPOSE, capture_output=True, text=True, timeout=60 * PATIENCE)
    assert done.returncode == 0 and "source: /models/demo" in done.stdout and "8001" not in done.stdout
    out = folder / "models.yaml"
    out.write_text("mine")
    done = run("import", folder / "compose.yaml", "-o", out)
    assert done.returncode == 2 and "--force replaces it" in done.stderr and out.read_text() == "mine"
    done = run("import", folder / "compose.yaml", "-o", out, "--force")
    assert done.returncode == 0 and "source: weights/demo" in out.read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["compose.yaml", "models.yaml", "weights"]


def test_relative_paths_of_a_command_are_seen_from_the_new_file(folder):
    (folder / "conf").mkdir()
    done = subprocess.run([PROGRAM, "import", "-o", "conf/models.yaml", "--", "vllm", "serve", "weights/demo"], cwd=folder,
                          capture_output=True, text=True, timeout=60 * PATIENCE)
    assert done.returncode == 0 and "source: ../weights/demo" in (folder / "conf/models.yaml").read_text()
    checked = run("check", "--config", folder / "conf/models.yaml")
    assert checked.returncode == 0 and "valid" in checked.stdout, checked.stderr


@pytest.mark.parametrize("arguments,said", [
    ([], "give a FILE, - for stdin, or the words of a command line after --"),
    (["nothing.yaml"], "nothing.yaml: No such file or directory"),
    (["--", "echo", "hello"], "no command that is known here"),
    (["--for", "moon", "-"], "--for"),
    (["-o", "/nowhere/models.yaml", "--", "vllm", "serve", "a/b"], "/nowhere/models.yaml: No such file or directory")])
def test_misuse(arguments, said):
    done = run("import", *arguments)
    assert done.returncode == 2 and said in done.stderr + done.stdout


def test_devices_and_links_stay_what_they_are(tmp_path):
    words = ["--", "vllm", "serve", "Qwen/Qwen3-0.6B"]
    for flags in ([], ["--force"]):
        done = run("import", *flags, "-o", "/dev/stdout", "--report", "/dev/null", *words)
        assert done.returncode == 0 and "models:" in done.stdout and not done.stderr
        assert pathlib.Path("/dev/null").is_char_device()
    file, link = tmp_path / "file.yaml", tmp_path / "link.yaml"
    file.write_text("old")
    link.symlink_to(file)
    assert run("import", "-o", link, *words).returncode == 2
    assert run("import", "--force", "-o", link, *words).returncode == 0
    assert link.is_symlink() and "models:" in file.read_text()
