"""The page of `sample.py --explore`: its endpoints, what it refuses, and itself in a browser if there is one."""

import base64
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from degrain.models.core.errors import InputError
from degrain.models.gan.generator import Generator, GeneratorConfig
from degrain.models.inference import server as serving
from degrain.models.inference.codes import positions, traverse
from degrain.models.inference.drawing import latents_by_information
from degrain.models.inference.explore import SLIDERS, Choice, Explorer, data_uri
from degrain.models.inference.pictures import as_pictures
from degrain.models.inference.pipeline import Pipeline, PlainPipeline
from degrain.models.inference.server import PAGE, Server
from tests.inference.test_checkpoint import small_pipeline
from tests.tiny import error_of

Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline(True)


def read(content: bytes) -> tuple[np.ndarray, str]:
    """Take an image of the model's size as it is."""
    try:
        return np.array(Image.open(io.BytesIO(content))).transpose(2, 0, 1), "as it is"
    except OSError:
        raise InputError("the photograph: not a readable image") from None


@pytest.fixture(scope="module")
def server(pipeline) -> Iterator[Server]:
    with Server(Explorer(pipeline, "a <b>.ckpt", Choice(), read), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(server) -> Ask:
    def ask(path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Return the status and the values of an answer."""
        connection = HTTPConnection(*server.server_address, timeout=60)
        content = json.dumps(body) if isinstance(body, dict | list) else body
        connection.request("GET" if body is None else "POST", path, content, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content.startswith(b"{") else content

    return ask


def pictures(rows: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return the first image of each row as the page gets it."""
    return {name: data_uri(as_pictures(name, images)[0]) for name, images in rows.items()}


def test_the_page_is_one_file_that_needs_no_other_place(ask):
    status, page = ask("/")
    assert status == 200 and page == PAGE.read_bytes()
    assert not re.search(rb"(src|href)\s*=\s*[\"'](?!data:)|url\(|@import|https?:", page)


def test_the_model_has_its_most_informative_latents_first(ask, pipeline):
    status, model = ask("/model")
    order, nats = latents_by_information(pipeline)
    assert status == 200 and model["title"] == "a <b>.ckpt" and model["rows"] == list(pipeline.rows)
    assert [latent["number"] for latent in model["latents"]] == order[:SLIDERS]
    assert model["latents"][0]["nats"] == round(float(nats[0]), 2)
    assert model["priors"][0] == pipeline.priors[-1]


def test_a_draw_is_that_of_its_seed_and_the_noise_has_a_seed_of_its_own(ask, pipeline):
    status, drawn = ask("/draw", {"seed": 3, "noise_seed": 3, "temperature": 0.5, "noise": 0.8})
    assert status == 200
    assert drawn["rows"] == pictures(pipeline.draw(3, [0], temperature=0.5, noise=0.8))
    other = ask("/draw", {"seed": 3, "noise_seed": 4, "temperature": 0.5, "noise": 0.8})[1]
    assert other["rows"]["mean"] == drawn["rows"]["mean"] and other["rows"]["sample"] != drawn["rows"]["sample"]
    assert other["positions"] == drawn["positions"]


def test_a_latent_is_moved_and_the_others_stay(ask, pipeline):
    order = latents_by_information(pipeline)[0][:SLIDERS]
    before = ask("/draw", {"seed": 1})[1]["positions"]
    want = positions(pipeline.codes(1, [0]).z, pipeline.prior)[0, order]
    assert before == pytest.approx(want.tolist(), abs=1e-3)
    moved = ask("/draw", {"seed": 1, "latents": {str(order[1]): -2.5}})[1]
    assert moved["positions"] == [before[0], -2.5, *before[2:]]
    z, noise = pipeline.codes(1, [0]).z, pipeline.codes(0, [0])
    codes = traverse(type(noise)(z, noise.noise), torch.tensor([order[1]]), torch.tensor([-2.5]), pipeline.prior)
    with torch.inference_mode():
        assert moved["rows"] == pictures(pipeline.render(*codes))


def test_a_photograph_is_reconstructed(ask, pipeline):
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    file = io.BytesIO()
    image.save(file, "bmp")
    status, found = ask("/photograph", file.getvalue())
    assert (status, found["words"]) == (200, "as it is")
    drawn = ask("/draw", {"seed": 2, "noise_seed": 2, "photograph": found["photograph"]})[1]
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    assert drawn["rows"] == pictures(pipeline.reconstruct(2, [0], x))


SMALL = data_uri(np.zeros((8, 8, 3), np.uint8))
BAD = {
    "no JSON": ("/draw", b"{", "no JSON"),
    "a list": ("/draw", [1], "give a mapping with names among seed"),
    "an unknown name": ("/draw", {"sead": 1}, "names among seed, noise_seed"),
    "a negative seed": ("/draw", {"seed": -1}, "seed -1: must be an integer"),
    "a text as seed": ("/draw", {"noise_seed": "x"}, "noise_seed .*: must be an integer"),
    "no number": ("/draw", b'{"noise": NaN}', "noise nan: must be a number from 0 to"),
    "an unknown prior": ("/draw", {"prior": "other"}, "prior other"),
    "an unknown latent": ("/draw", {"latents": {"99": 1}}, "latents 99: 1: give numbers from 0 to"),
    "a latent that is moved too far": ("/draw", b'{"latents": {"0": Infinity}}', "latents 0: inf"),
    "a latent that is moved beyond float64": ("/draw", b'{"latents": {"0": 1%s}}' % (b"0" * 400), "latents 0: 10"),
    "no mapping of latents": ("/draw", {"latents": []}, r"latents \[\]"),
    "a scale beyond float64": ("/draw", b'{"temperature": 1%s}' % (b"0" * 400), "temperature 10"),
    "no end of lists": ("/draw", b"[" * 200_000, "no JSON"),
    "no latents": ("/draw", {"latents": 3}, "latents 3"),
    "no PNG": ("/draw", {"photograph": "data:image/png;base64,AAAA"}, "PNG of 32x32 pixels"),
    "no base64": ("/draw", {"photograph": "?"}, "PNG of 32x32 pixels"),
    "a number as photograph": ("/draw", {"photograph": 7}, "PNG of 32x32 pixels"),
    "a photograph of another size": ("/draw", {"photograph": SMALL}, "PNG of 32x32 pixels"),
    "no image": ("/photograph", b"text", "not a readable image"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_answered_in_one_line(ask, case):
    path, body, line = BAD[case]
    status, found = ask(path, body)
    assert status == 400 and re.search(line, found["error"]) and "\n" not in found["error"]


def test_other_sites_and_places_are_refused(ask, server, monkeypatch):
    assert server.server_address[0] == "127.0.0.1"
    assert ask("/", Host="example.org")[0] == ask("/draw", {}, Origin="http://example.org")[0] == 403
    assert ask("/draw", {}, Origin=server.url.rstrip("/"))[0] == 200
    assert ask("/../sample.py")[0] == 404
    monkeypatch.setattr(serving, "MOST_BYTES", 3)
    assert ask("/photograph", b"text")[0] == 413


def test_a_plain_gan_has_no_sliders_and_takes_no_photographs():
    networks = PlainPipeline(Generator(32, GeneratorConfig((8, 8), patch=4, latent=4))).eval()
    explorer = Explorer(networks, "plain", Choice(), read)
    assert explorer.model()["latents"] == explorer.draw(Choice(seed=1))["positions"] == []
    assert explorer.draw(Choice(seed=1))["rows"] == pictures(networks.draw(1, [0]))
    for choice in (Choice(photograph=SMALL), Choice(latents={"0": 1.0})):
        with pytest.raises(InputError, match="encoder|latents 0"):
            explorer.draw(choice)


# --- the command line


def explore(checkpoint: Any, *options: str) -> None:
    sample.main([str(checkpoint), "--explore", "true", "--device", "cpu", *options])


def test_ctrl_c_ends_it_with_130_and_a_browser_opens_where_there_is_a_display(checkpoints, monkeypatch, capsys):
    opened = threading.Event()
    monkeypatch.setattr(serving.webbrowser, "open", lambda url: opened.set())

    def until_ctrl_c(server: Server) -> None:
        explorer = server.explorer
        assert explorer.begin == Choice(5, 5, 0.7, 1.0, None)
        photograph = explorer.photograph(base64.b64decode(SMALL.partition(",")[2]))
        assert photograph["words"] == "cropped to the centre square, resized to 32x32 pixels, enlarged"
        assert "denoised" in explorer.draw(Choice(photograph=photograph["photograph"]))["rows"]
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", until_ctrl_c)
    for display in ("", ":0"):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        with pytest.raises(SystemExit) as caught:
            explore(checkpoints["gan"], "--port", "0", "--seed", "5", "--temperature", "0.7")
        assert caught.value.code == 130
        assert re.search(r"explore: http://127\.0\.0\.1:\d+/ \(", capsys.readouterr().out)
        assert opened.wait(5 * bool(display)) == bool(display)


def test_a_port_that_is_taken_is_said(checkpoints, server, capsys):
    line = error_of(capsys, lambda: explore(checkpoints["vae"], "--port", str(server.server_address[1])))
    assert re.search(r"explore: port \d+: Address already in use; choose another --port, or 0", line)


# --- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_every_row_and_the_state_of_the_address(server, tmp_path):
    url = f"{server.url}#seed=3&noise_seed=4&temperature=0.5"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=5000",
    ]
    run = subprocess.run([CHROMIUM, *options, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    want = server.explorer.draw(Choice(3, 4, 0.5))
    for name, picture in want["rows"].items():
        assert re.search(rf'id="row-{name}" alt="{name}: [^"]*" src="{re.escape(picture)}"', run.stdout), name
    assert "a &lt;b&gt;.ckpt" in run.stdout and run.stdout.count('class="control latent"') == len(want["positions"])
