"The hub's HTTP interface, stood in for by a server of this machine; TensorBoard's files, read back by its own reader."
import base64
import http.server
import json
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from commands import shell
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery.board import Board, flat
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.hub import from_hub, is_repo, repo_of
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.pushing import fill_repo, push
from sagan_nb.machinery.runs import train
from sagan_nb.networks import Generator

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Hub(http.server.BaseHTTPRequestHandler):
    "What is asked of the hub to make a repository, commit to it and download from it."
    files, asked = {}, []
    def log_message(self, *args): pass

    def answer(self, value=None, content=None, code=200):
        body = json.dumps(value).encode() if content is None else content
        self.send_response(code)
        headers = {'Content-Length': len(body), 'ETag': f'"{hash(body) & 0xffffff:x}"', 'X-Repo-Commit': COMMIT, 'Content-Type': 'application/json'}
        for k, v in headers.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.rsplit('/', 1)[-1].split('?')[0]
        if '/resolve/' in self.path and name in self.files: return self.answer(content=self.files[name])
        self.answer(dict(error='not found', siblings=[]), code=404)
    do_HEAD = do_GET

    def do_POST(self):
        self.asked.append(self.path)
        text = self.rfile.read(int(self.headers['Content-Length'])).decode()
        if self.path.endswith('/create'): return self.answer(dict(url=f'http://{self.headers["Host"]}/someone/gan', name='someone/gan', id='x'))
        if '/preupload/' in self.path:
            files = [dict(path=o['path'], uploadMode='regular', shouldIgnore=False, oid=None) for o in json.loads(text)['files']]
            return self.answer(dict(files=files))
        if '/commit/' not in self.path: return self.answer(dict(errors=[], warnings=[]))        # is the card valid?
        for line in map(json.loads, text.splitlines()):
            if line['key'] == 'file': self.files[line['value']['path']] = base64.b64decode(line['value']['content'])
        self.answer(dict(success=True, commitOid=COMMIT, commitUrl=f'http://{self.headers["Host"]}/someone/gan/commit/{COMMIT}', hookOutput='', pullRequestUrl=None))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip('huggingface_hub', reason='huggingface_hub is not installed')
    Hub.files, Hub.asked = {}, []
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for k, v in dict(HF_ENDPOINT=f'http://127.0.0.1:{server.server_port}', HF_TOKEN='hf_test', HF_HOME=str(tmp_path/'hf')).items(): monkeypatch.setenv(k, v)
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hf'))
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    yield Hub
    server.shutdown()


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    G = Generator(res=32, width=4, n_classes=3, attn_at=(16,)).eval()
    return G, save_pretrained(G, tmp_path/'g.safetensors')


def test_there_and_back(hub, weights, monkeypatch, capsys):
    G, file = weights
    code, out, err = shell(monkeypatch, capsys, 'sagan_export', file, '--push', 'someone/gan', '--licence', 'cc-by-4.0')
    assert code == 0 and 'published' in out, err
    assert {'model.safetensors', 'README.md', 'attention.png'} <= {*hub.files}
    card = hub.files['README.md'].decode()
    assert card.startswith('---\nlibrary_name: sagan_nb') and 'license: cc-by-4.0' in card and '3 classes' in card and '## Scores' in card
    z, y = torch.randn(2, 128), torch.tensor([0, 2])
    again = Generator.from_pretrained('hf:someone/gan')
    assert torch.equal(again(z, y), G(z, y))
    open_run('hf:someone/gan@v1')                                                  # a pinned revision asks for that one
    assert any('/resolve/v1/' in o for o in hub.asked)


def test_what_the_hub_has_not(hub):
    with pytest.raises(Refused, match='hf:someone/none: model.safetensors cannot be had'): from_hub('hf:someone/none')


def test_names_of_repositories():
    assert is_repo('hf:a/b') and is_repo('hf:a/b@v1') and not any(map(is_repo, ('runs/first', 'hf:a', 'a/b', 'hf:a/b/c')))
    assert repo_of('hf:a/b@main') == ('a/b', 'main')
    with pytest.raises(Refused, match='USER/REPO'): repo_of('hf:a')


def test_without_the_package(monkeypatch, weights):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(Refused, match=r'sagan_nb\[hub\]'): from_hub('hf:a/b')
    with pytest.raises(Refused, match=r'sagan_nb\[hub\]'): push(weights[1], 'a/b')


def test_the_card_of_anybodys_weights(weights, tmp_path):
    fill_repo(weights[1], tmp_path/'repo')
    text = (tmp_path/'repo'/'README.md').read_text()
    assert 'pictures: not recorded' in text and 'None is recorded' in text and 'license:' not in text


def test_a_card_names_no_path_and_what_it_began_with(tmp_path):
    "And a generator without attention has no picture of it."
    cfg = replace(at_scale(preset('t1_none'), 'smoke'), n_classes=4, width=2, data='/home/somebody/private/cats', data_id=Toy(32).fingerprint)
    train(cfg, Toy(32), tmp_path/'run')
    (tmp_path/'run'/'init.json').write_text(json.dumps(dict(init='mmgen:imagenet', held=0)))
    fill_repo(tmp_path/'run', tmp_path/'repo')
    text = (tmp_path/'repo'/'README.md').read_text()
    assert 'pictures: cats, 4 classes' in text and 'somebody' not in text and 'attention.png' not in text
    assert 'began with the weights of mmgen:imagenet, whose licence holds, too' in text


def test_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    (tmp_path/'samples').mkdir()
    from PIL import Image
    Image.new('RGB', (8, 8), 'red').save(tmp_path/'samples'/'step_0000002.png')
    lines = [dict(t=1, loss_d=2., usage_G={'16': dict(ratio=.5)}), dict(t=2, loss_d=1.)]
    board = Board(tmp_path)
    for n in (1, 2):
        (tmp_path/'log.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in lines[:n]))
        board(SimpleNamespace(t=n), {})
    (tmp_path/'samples'/'step_0000003.png').write_bytes(b'damaged')          # costs that picture, and not the training
    reads = []
    monkeypatch.setattr('sagan_nb.machinery.board.read_log', lambda *args: reads.append(args) or [])
    for _ in range(3): board(SimpleNamespace(t=3), {})
    assert not reads                                                         # nothing new: nothing is read again
    board.writer.close()
    read = EventAccumulator(str(tmp_path/'tensorboard')).Reload()
    assert [(o.step, o.value) for o in read.Scalars('loss_d')] == [(1, 2.), (2, 1.)] and read.Scalars('usage_G/16/ratio')[0].value == .5
    assert [o.step for o in read.Images('samples')] == [2]


def test_a_board_has_each_line_once(tmp_path):
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    def lines(*steps): (tmp_path/'log.jsonl').write_text(''.join(f'{{"t": {t}, "loss_d": {t}}}\n' for t in steps))
    (tmp_path/'samples').mkdir()
    first, again = Board(tmp_path), Board(tmp_path)
    for board, t, steps in ((first, 3, (1, 2, 3)), (again, 4, (1, 2, 3, 4)), (again, 3, (1, 2, 3))):          # resumed; went back
        lines(*steps)
        board(SimpleNamespace(t=t), {})
        board.writer.close()
    read = EventAccumulator(str(tmp_path/'tensorboard')).Reload()
    assert [o.step for o in read.Scalars('loss_d')] == [1, 2, 3]


def test_numbers_of_a_log():
    assert [*flat(dict(t=3, a=1., b={'x': dict(c=2)}, words='no'))] == [('a', 1.), ('b/x/c', 2)]


def test_tensorboard_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(Refused, match=r'sagan_nb\[log\]'): Board(tmp_path)
