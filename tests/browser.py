"A headless Chromium, driven through a pipe by its own protocol. Nothing to install but the browser."
import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome', 'chrome')


def chromium():
    "The browser of this machine, or None."
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get('CHROMIUM'), *NAMES)))), None)


class Page:
    "One page: open a file, ask it, click it, take its picture; `errors` and `requests` are what it said and asked for."
    def __init__(self):
        high = lambda fd: fcntl.fcntl(fd, fcntl.F_DUPFD, 10)
        (a, b), (c, d) = os.pipe(), os.pipe()
        theirs = high(a), high(d)
        self.folder, self.id, self.rest, self.session = tempfile.mkdtemp(), 0, b'', None
        options = ('--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--remote-debugging-pipe',
                   f'--user-data-dir={self.folder}')
        self.child = subprocess.Popen([chromium(), *options, 'about:blank'], pass_fds=(3, 4), stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL, preexec_fn=lambda: (os.dup2(theirs[0], 3), os.dup2(theirs[1], 4)))
        self.write, self.read = high(b), high(c)
        for fd in (a, b, c, d, *theirs): os.close(fd)
        self.errors, self.requests, self.loaded = [], [], False
        target = self('Target.createTarget', url='about:blank')['targetId']
        self.session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self(f'{domain}.enable')

    def __enter__(self): return self

    def __exit__(self, *exc):
        self.child.kill()
        self.child.wait()
        os.close(self.write)
        os.close(self.read)
        shutil.rmtree(self.folder, ignore_errors=True)

    def next(self):
        "The next message of the browser; notes what tests ask about."
        while b'\0' not in self.rest:
            more = os.read(self.read, 1 << 20)
            if not more: raise RuntimeError('the browser is gone')
            self.rest += more
        text, self.rest = self.rest.split(b'\0', 1)
        o = json.loads(text)
        name, p = o.get('method'), o.get('params', {})
        if name == 'Runtime.exceptionThrown': self.errors.append(p['exceptionDetails'].get('exception', p['exceptionDetails']).get('description', 'exception'))
        if name == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'warning', 'assert'): self.errors.append(str(p['args']))
        if name == 'Log.entryAdded' and p['entry']['level'] in ('error', 'warning'): self.errors.append(p['entry']['text'])
        if name == 'Network.requestWillBeSent': self.requests.append(p['request']['url'][:200])
        if name == 'Page.loadEventFired': self.loaded = True
        return o

    def __call__(self, method, **params):
        self.id += 1
        message = dict(id=self.id, method=method, params=params, **({'sessionId': self.session} if self.session else {}))
        os.write(self.write, json.dumps(message).encode() + b'\0')
        while (o := self.next()).get('id') != self.id: pass
        if 'error' in o: raise RuntimeError(f'{method}: {o["error"]}')
        return o['result']

    def open(self, path, width=1000, height=900, dark=False):
        "Load a file in a window of this size."
        self('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
        self('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value='dark' if dark else 'light')])
        self.loaded = False
        self('Page.navigate', url=Path(path).resolve().as_uri())
        while not self.loaded: self.next()
        return self

    def ask(self, script):
        "The value of an expression in the page."
        o = self('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in o: raise RuntimeError(o['exceptionDetails'])
        return o['result'].get('value')

    def click(self, x, y):
        for kind in ('mousePressed', 'mouseReleased'):
            self('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def press(self, key):
        for kind in ('keyDown', 'keyUp'): self('Input.dispatchKeyEvent', type=kind, key=key)

    def picture(self, path, whole=True):
        "A screenshot as PNG."
        time.sleep(.1)
        data = self('Page.captureScreenshot', format='png', captureBeyondViewport=whole)['data']
        Path(path).write_bytes(base64.b64decode(data))
        return Path(path)
