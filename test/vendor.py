#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Tests vendor/fetch.sh and vendor/update.sh without a network: a local server stands for all the projects' addresses, a folder for
the pool of a Debian mirror. The files of vendor/lock must be in vendor/cache or $VENDOR_DIR. The last line is
`N passed, N failed`.
"""

import hashlib
import http.server
import io
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOWHERE = 'file:///nowhere'
RAW = 'https://raw.githubusercontent.com/nss-dev/nss/NSS_%s_RTM/lib/ckfw/builtins/certdata.txt'
counts = {True: 0, False: 0}


def check(name, good, detail=''):
    """Counts one check, and says so if it failed."""
    counts[bool(good)] += 1
    if not good:
        print(f'FAILED {name}', f': {detail}' if detail != '' else '', sep='')


def equal(name, found, expected):
    check(name, found == expected, f'found {found!r}, expected {expected!r}')


def read(path):
    with open(path, 'rb') as f:
        return f.read()


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as f:
        f.write(content)


def archive(members, compress='gz', date=0):
    """Returns a tar archive of {name: content}; DATE is that of all members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:' + compress) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = date
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def seconds(day):
    return int(time.mktime(time.strptime(day + ' 12:00', '%Y-%m-%d %H:%M')))


class Entry:
    """A line of a lock."""

    def __init__(self, line):
        self.line = line
        self.name, self.version, self.date, self.sum, self.licence, self.file, *self.sources = line.split()
        self.urls = [source for source in self.sources if source.startswith('https://')]
        self.pools = [source for source in self.sources if source.startswith('pool:')]


def read_lock(path):
    lines = [line for line in read(path).decode().splitlines() if line and not line.startswith('#')]
    return {line.split()[0]: Entry(line) for line in lines}


LOCK = read_lock(os.path.join(ROOT, 'vendor/lock'))


def vendored(entry):
    """The path of the file that a line of the lock names, as `make` has fetched it."""
    for folder in (os.environ.get('VENDOR_DIR'), os.path.join(ROOT, 'vendor/cache')):
        if folder and os.path.exists(os.path.join(folder, entry.file)):
            return os.path.join(folder, entry.file)
    sys.exit(f'{entry.file} is not in vendor/cache: run make first')


def as_published(diff, place, signature):
    """
    The patch around what it changes, as a web page of the repository prints it, or a mail: a message, the names of blobs,
    another place and the name of a function.
    """
    text = diff.decode()
    text = re.sub('^(diff --git .*\n(?:new file mode .*\n)?)', r'\1index 9605c8e9..008c93f0 100644' + '\n', text, flags=re.M)
    text = re.sub(r'^@@ -1,(\d+) \+1,(\d+) @@$', rf'@@ -{place},\1 +{place + 3},\2 @@ size_t iconv(iconv_t cd, char **in)', text,
                  flags=re.M)
    return (f'From 1781bcc309430129efddeb6a7356487cd505227a Mon Sep 17 00:00:00 2001\nFrom: Somebody <a@example.org>\n'
            f'Date: Thu, 9 Apr 2026 22:51:30 -0400\nSubject: a change\n\nas it was said\n---\n src/a.c | 2 +-\n\n{text}-- \n'
            f'{signature}\n\n').encode()


class Upstream(http.server.ThreadingHTTPServer):
    """Stands for all the projects: https://HOST/PATH is /HOST/PATH here. FILES has the answers, ASKED the requests."""
    daemon_threads = True

    def __init__(self):
        self.files = {}
        self.asked = []
        super().__init__(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f'http://127.0.0.1:{self.server_address[1]}'

    def put(self, url, content):
        self.files[url.partition('#')[0].replace('https:/', '', 1)] = content


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Length', str(len(content or b'')))
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *arguments):
        pass


def form(entry, source, content):
    """What is at a source, so that it gives CONTENT: that itself, a whole patch, or an archive with it."""
    if entry.file.endswith('.diff'):
        content = as_published(content, 40, 'cgit v1.2.3') if source.startswith('https:') else as_published(content, 33, '2.47.3')
    if '#' in source:
        path, _, member = source.partition('#')
        return archive({member: content}, 'xz' if path.endswith('.xz') else 'gz')
    return content


class Place:
    """A copy of the project's vendor/ with an empty cache, and what it is run with."""

    def __init__(self, tmp, name):
        self.folder = os.path.join(tmp, name)
        self.src = os.path.join(self.folder, 'build/src')
        self.pool = os.path.join(tmp, name + '.pool')
        os.makedirs(os.path.join(self.folder, 'vendor/cache'))
        os.makedirs(self.pool)
        for file in os.listdir(os.path.join(ROOT, 'vendor')):
            path = os.path.join(ROOT, 'vendor', file)
            if os.path.isfile(path):
                shutil.copy(path, os.path.join(self.folder, 'vendor'))
        shutil.copy(os.path.join(ROOT, 'Makefile'), self.folder)
        os.mkdir(os.path.join(self.folder, 'test'))
        for name in ('test.mk', 'install.sh'):
            shutil.copy(os.path.join(ROOT, 'test', name), os.path.join(self.folder, 'test'))

    def lock(self):
        return read_lock(os.path.join(self.folder, 'vendor/lock'))

    def put(self, entry, content, source):
        """Puts a file into the pool."""
        path = os.path.join(self.pool, 'pool/main', source[len('pool:'):].partition('#')[0])
        write(path, form(entry, source, content))

    def run(self, *command, offline=False, **settings):
        """Runs COMMAND there; returns its exit code and what it prints. OFFLINE: in a network name space without a network."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith('VENDOR_') and key != 'MAKEFLAGS'}
        environment.update(settings, no_proxy='*')
        if offline:
            for unshare in (['unshare', '-n'], ['unshare', '-rn']):
                if subprocess.run([*unshare, 'true'], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                    command = [*unshare, *command]
                    break
        done = subprocess.run(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, encoding='utf-8', timeout=50, check=False)
        return done.returncode, done.stdout

    def fetch(self, **settings):
        return self.run('vendor/fetch.sh', 'build/src', **settings)


def tree(folder):
    """Returns {path: SHA-256} of all files in a folder."""
    found = {}
    for where, _, files in os.walk(folder):
        for file in files:
            path = os.path.join(where, file)
            found[os.path.relpath(path, folder)] = hashlib.sha256(read(path)).hexdigest()
    return found


def test_lock():
    for entry in LOCK.values():
        check(f'lock: {entry.name} has an upstream address', entry.urls)
        check(f'lock: {entry.name} has a date', re.fullmatch(r'20\d\d-\d\d-\d\d', entry.date), entry.date)
        equal(f'lock: checksum of {entry.file}', hashlib.sha256(read(vendored(entry))).hexdigest(), entry.sum)
        if entry.name.startswith('musl-'):
            check(f'lock: {entry.name} names its commit', entry.urls[0].endswith('?id=' + entry.version)
                  and entry.name == 'musl-' + entry.version[:8], entry.line)


def test_folder(tmp, folder):
    """VENDOR_DIR alone. Returns what it unpacked."""
    place = Place(tmp, 'folder')
    code, output = place.fetch(VENDOR_DIR=folder, VENDOR_POOL=NOWHERE, VENDOR_MIRROR='http://127.0.0.1:1', offline=True)
    equal('from a folder: ends well', (code, output), (0, ''))
    equal('from a folder: nothing is copied to the cache', os.listdir(os.path.join(place.folder, 'vendor/cache')), [])
    files = tree(place.src)
    for path in ('mbedtls/library/ssl_tls.c', 'cjson/cJSON.c', 'libyaml/src/api.c', 'musl/configure', 'certdata.txt'):
        check(f'from a folder: {path} is there', path in files)
    check('from a folder: a new file of a patch is there', 'musl/src/locale/gb18030utf.h' in files)
    check('from a folder: no backups of patched files', not [path for path in files if path.endswith(('.orig', '.rej'))])
    specs = read(os.path.join(place.src, 'musl/tools/musl-gcc.specs.sh')).decode()
    check('from a folder: musl knows -static-pie', '%{shared:;static-pie:$libdir/rcrt1.o; :$libdir/Scrt1.o}' in specs
          and '%{static-pie:-static -pie --no-dynamic-linker}' in specs)
    # One is missing.
    place = Place(tmp, 'folder-missing')
    less = os.path.join(tmp, 'less')
    shutil.copytree(folder, less, symlinks=True)
    gone = LOCK['musl']
    os.unlink(os.path.join(less, gone.file))
    code, output = place.fetch(VENDOR_DIR=less, VENDOR_POOL=NOWHERE, VENDOR_MIRROR='http://127.0.0.1:1', offline=True)
    equal('a file is missing: exit code', code, 1)
    for word in (gone.file + ' was found nowhere', less, *gone.sources, 'vendor/README.md'):
        check(f'a file is missing: names {word}', word in output, output)
    check('a file is missing: nothing is unpacked', not os.path.exists(place.src))
    code, output = place.fetch(VENDOR_DIR='/nowhere')
    equal('no such folder', (code, output), (1, 'vendor/fetch.sh: VENDOR_DIR: no such folder: /nowhere\n'))
    return files


def test_upstream(tmp, expected):
    """Everything from the projects themselves: an empty pool, an empty cache."""
    server = Upstream()
    for entry in LOCK.values():
        server.put(entry.urls[0], form(entry, entry.urls[0], read(vendored(entry))))
    place = Place(tmp, 'upstream')
    code, output = place.fetch(VENDOR_POOL=NOWHERE, VENDOR_MIRROR=server.address)
    equal('from upstream: exit code', code, 0)
    equal('from upstream: says of each where it comes from', re.findall('  from (.*)', output),
          [entry.urls[0] for entry in LOCK.values()])
    equal('from upstream: each is asked for once', server.asked, list(server.files))
    equal('from upstream: the files', tree(place.src), expected)
    server.files.clear()
    equal('from upstream: then from the cache',
          place.run('vendor/fetch.sh', VENDOR_POOL=NOWHERE, VENDOR_MIRROR=server.address), (0, ''))
    # The first addresses give 404.
    for entry in LOCK.values():
        for url in entry.urls[1:]:
            server.files.clear()
            server.put(url, form(entry, url, read(vendored(entry))))
            write(os.path.join(place.folder, 'vendor/lock'), entry.line.encode() + b'\n')
            os.unlink(os.path.join(place.folder, 'vendor/cache', entry.file))
            code, output = place.run('vendor/fetch.sh', VENDOR_POOL=NOWHERE, VENDOR_MIRROR=server.address)
            equal(f'from upstream: {entry.name} from another address', (code, output),
                  (0, f'fetching {entry.file}\n  from {url}\n'))
    server.shutdown()


def test_pool(tmp, expected):
    """Everything from a mirror's pool, with patches and certificates out of Debian's packages."""
    place = Place(tmp, 'pool')
    packages = {}
    for entry in LOCK.values():
        source = entry.pools[0]
        path, _, member = source.partition('#')
        if member:
            content = read(vendored(entry))
            content = as_published(content, 33, '2.47.3') if entry.file.endswith('.diff') else content
            packages.setdefault(path, {})[member] = content
        else:
            place.put(entry, read(vendored(entry)), source)
    for path, members in packages.items():
        write(os.path.join(place.pool, 'pool/main', path[len('pool:'):]), archive(members, 'xz'))
    code, output = place.fetch(VENDOR_POOL='file://' + place.pool, VENDOR_MIRROR='http://127.0.0.1:1', offline=True)
    equal('from the pool: exit code', code, 0)
    equal('from the pool: says of each where it comes from', output.count('  from pool:'), len(LOCK))
    equal('from the pool: the files', tree(place.src), expected)


def damaged(entry):
    """The content of a file with one byte more or another one, still of the right form."""
    content = read(vendored(entry))
    if entry.file.endswith('.diff'):
        at = content.index(b'\n+', content.index(b'\n@@')) + 2
        return content[:at] + b' ' + content[at:]
    return content + b'\n'


def test_checksums(tmp):
    """A wrong file is refused, from wherever it comes, and the good one before it is not unpacked either."""
    server = Upstream()
    place = Place(tmp, 'wrong')
    cache = os.path.join(place.folder, 'vendor/cache')
    for entry in LOCK.values():
        bad = damaged(entry)
        good = LOCK['libyaml' if entry.name == 'cjson' else 'cjson']
        write(os.path.join(place.folder, 'vendor/lock'), f'{good.line}\n{entry.line}\n'.encode())
        for origin in ('folder', 'cache', 'pool', 'upstream'):
            settings = {'VENDOR_POOL': NOWHERE, 'VENDOR_MIRROR': server.address}
            shutil.rmtree(cache)
            os.mkdir(cache)
            shutil.copy(vendored(good), cache)
            at = os.path.join(cache, entry.file)
            if origin == 'folder':
                settings['VENDOR_DIR'] = os.path.join(tmp, 'bad')
                shutil.rmtree(settings['VENDOR_DIR'], ignore_errors=True)
                write(os.path.join(settings['VENDOR_DIR'], entry.file), bad)
                said = settings['VENDOR_DIR']
            elif origin == 'cache':
                write(at, bad)
                said = 'vendor/cache'
            elif origin == 'pool':
                place.put(entry, bad, entry.pools[0])
                settings['VENDOR_POOL'] = 'file://' + place.pool
                said = entry.pools[0]
            else:
                server.put(entry.urls[0], form(entry, entry.urls[0], bad))
                said = entry.urls[0]
            os.makedirs(place.src, exist_ok=True)
            write(os.path.join(place.src, 'before'), b'')
            name = f'{entry.name}, wrong from {origin}'
            code, output = place.fetch(**settings)
            equal(f'{name}: exit code', code, 1)
            check(f'{name}: the message', f'wrong checksum of {entry.file} (from {said})\n  expected {entry.sum}\n  found    '
                  f'{hashlib.sha256(bad).hexdigest()}\n' in output, output)
            equal(f'{name}: nothing is unpacked', os.listdir(place.src), ['before'])
            equal(f'{name}: it stays out of the cache', os.path.exists(at), origin == 'cache')
            shutil.rmtree(place.pool, ignore_errors=True)
            server.files.clear()
    server.shutdown()


class Pool:
    """The pool of a mirror, with lists of its source packages."""

    def __init__(self, folder):
        self.folder = folder
        self.stanzas = []

    def add(self, package, version, directory, files):
        for name, content in files.items():
            write(os.path.join(self.folder, 'pool/main', directory, name), content)
        sums = ''.join(f'\n {hashlib.sha256(content).hexdigest()} {len(content)} {name}' for name, content in files.items())
        old = ''.join(f'\n {hashlib.md5(content).hexdigest()} {len(content)} {name}' for name, content in files.items())
        self.stanzas.append(f'Package: {package}\nFormat: 3.0 (quilt)\nBinary: {package}\nArchitecture: any\nVersion: {version}\n'
                            f'Files:{old}\nChecksums-Sha256:{sums}\nDirectory: pool/main/{directory}\n\n')

    def close(self):
        sources = ''.join(self.stanzas).encode()
        for suite in ('stable', 'testing', 'sid'):
            text = sources if suite == 'sid' else b''
            packed = lzma.compress(text)
            where = os.path.join(self.folder, 'dists', suite)
            write(os.path.join(where, 'main/source/Sources.xz'), packed)
            sums = ''.join(f' {hashlib.sha256(c).hexdigest()} {len(c)} {n}\n'
                           for n, c in (('main/source/Sources', text), ('main/source/Sources.xz', packed)))
            write(os.path.join(where, 'Release'), (f'Origin: Test\nSuite: {suite}\nCodename: {suite}\nComponents: main\n'
                                                   f'Architectures: amd64\nSHA256:\n{sums}').encode())


def test_update(tmp, folder):
    """make update: newer releases in the pool and upstream, patches that a release has, new ones, another list of roots."""
    place = Place(tmp, 'update')
    before = place.lock()
    cache = os.path.join(place.folder, 'vendor/cache')
    shutil.rmtree(cache)
    shutil.copytree(folder, cache, symlinks=True)
    server = Upstream()
    settings = {'VENDOR_POOL': 'file://' + place.pool, 'VENDOR_MIRROR': server.address}

    # Nothing is newer: an old version, and Mbed TLS's next main version, which is no update.
    pool = Pool(place.pool)
    pool.add('cjson', '1.7.18-1', 'c/cjson', {'cjson_1.7.18.orig.tar.gz': b'old'})
    pool.add('mbedtls', '4.0.0-1', 'm/mbedtls', {'mbedtls_4.0.0.orig.tar.bz2': b'other'})
    pool.close()
    code, output = place.run('make', '-s', 'update', **settings)
    equal('update: nothing is newer', (code, output.count(' is the newest\n'), 'vendor/lock stays as it is' in output),
          (0, 5, True))
    equal('update: the lock stays', read(os.path.join(place.folder, 'vendor/lock')), read(os.path.join(ROOT, 'vendor/lock')))

    # cJSON from both.
    pool = Pool(place.pool)
    cjson = archive({'cJSON-1.7.20/cJSON.c': b'int x;\n'}, date=seconds('2027-03-04'))
    pool.add('cjson', '1.7.20-1', 'c/cjson', {'cjson_1.7.20.orig.tar.gz': cjson})
    server.put(before['cjson'].urls[0].replace('1.7.19', '1.7.20'), cjson)
    # libyaml only upstream, where its tags name it.
    libyaml = archive({'libyaml-0.2.6/src/api.c': b'int y;\n'}, date=seconds('2027-05-06'))
    server.put('https://github.com/yaml/libyaml/info/refs?service=git-upload-pack',
               b''.join(b'%040d\trefs/tags/%s\n' % (n, tag) for n, tag in enumerate((b'0.2.5', b'0.2.6', b'dist-0.2.9'), 1)))
    server.put('https://github.com/yaml/libyaml/HEAD', b'ref: refs/heads/master\n')
    server.put(before['libyaml'].urls[0].replace('0.2.5', '0.2.6'), libyaml)
    # A musl that has two of the patches; of its package's patches two are known, two are done otherwise, one is new.
    patches = [entry for name, entry in before.items() if name.startswith('musl-')]
    old = os.path.join(tmp, 'update-src')
    with tarfile.open(vendored(before['musl'])) as tar:
        for member in tar.getmembers():
            if member.name.endswith(('/iconv.c', '/qsort.c', '/musl-gcc.specs.sh', '/VERSION')):
                tar.extract(member, old)
    top = os.path.join(old, 'musl-' + before['musl'].version)
    for patch in patches[:2]:
        subprocess.run(['patch', '-s', '-p1', '-d', top, '-i', vendored(patch)], check=True)
    members = {'musl-1.2.99/' + path: read(os.path.join(top, path)) for path in tree(top) if not path.endswith('.orig')}
    musl = archive(members, date=seconds('2027-01-02'))
    fresh = b'diff --git a/VERSION b/VERSION\n--- a/VERSION\n+++ b/VERSION\n@@ -1 +1 @@\n-1.2.5\n+1.2.98\n'
    fresh_commit = '1781bcc309430129efddeb6a7356487cd505227a'
    series = {'static-pie.patch': b'', 'renameat2.patch': b'',
              'known-0.patch': as_published(read(vendored(patches[2])), 12, '2.50'),
              'known-1.patch': as_published(read(vendored(patches[3])), 13, '2.50'),
              'fresh.patch': as_published(fresh, 1, '2.50')}
    packaging = archive({**{'debian/patches/' + name: content for name, content in series.items()},
                         'debian/patches/series': ('\n'.join(series) + '\n').encode()}, 'xz')
    pool.add('musl', '1.2.99-2', 'm/musl', {'musl_1.2.99.orig.tar.gz': musl, 'musl_1.2.99-2.debian.tar.xz': packaging})
    # Root certificates: one gone, one renamed. NSS tells the version, ca-certificates has the same file.
    text = read(vendored(before['certdata'])).decode('latin-1')
    labels = re.findall(r'^CKA_CLASS CK_OBJECT_CLASS CKO_CERTIFICATE\n(?:.*\n)*?CKA_LABEL UTF8 "(.*)"$', text, re.M)
    newer = text.replace(f'CKA_LABEL UTF8 "{labels[0]}"', 'CKA_LABEL UTF8 "A renamed root"').encode('latin-1')
    nss = archive({'nss-3.200/nss/lib/ckfw/builtins/certdata.txt': newer}, date=seconds('2027-02-03'))
    pool.add('nss', '2:3.200-1', 'n/nss', {'nss_3.200.orig.tar.gz': nss})
    pool.add('ca-certificates', '20270304', 'c/ca-certificates', {'ca-certificates_20270304.tar.xz': archive(
        {'ca-certificates/mozilla/certdata.txt': newer}, 'xz')})
    server.put(RAW % '3_200', newer)
    pool.close()
    code, output = place.run('make', '-s', 'update', **settings)
    after = place.lock()
    check('update: shows each new version', all(f'{name} {before[name].version} ({before[name].date}) -> {version}\n' in output
          for name, version in (('cjson', '1.7.20'), ('libyaml', '0.2.6'), ('musl', '1.2.99'), ('certdata', '3.200'))), output)
    newest = f'mbedtls {before["mbedtls"].version} ({before["mbedtls"].date}) is the newest\n'
    check('update: shows that one stays', newest in output, output)
    equal('update: the line that stays', after['mbedtls'].line, before['mbedtls'].line)
    equal('update: from pool and upstream', after['cjson'].line, 'cjson 1.7.20 2027-03-04 '
          f'{hashlib.sha256(cjson).hexdigest()} MIT cjson_1.7.20.orig.tar.gz pool:c/cjson/cjson_1.7.20.orig.tar.gz '
          'https://github.com/DaveGamble/cJSON/archive/refs/tags/v1.7.20.tar.gz')
    equal('update: from upstream alone', after['libyaml'].line, 'libyaml 0.2.6 2027-05-06 '
          f'{hashlib.sha256(libyaml).hexdigest()} MIT libyaml_0.2.6.orig.tar.gz '
          'https://github.com/yaml/libyaml/archive/refs/tags/0.2.6.tar.gz')
    equal('update: from the pool alone, upstream is kept', after['musl'].line, 'musl 1.2.99 2027-01-02 '
          f'{hashlib.sha256(musl).hexdigest()} MIT musl_1.2.99.orig.tar.gz pool:m/musl/musl_1.2.99.orig.tar.gz '
          'https://musl.libc.org/releases/musl-1.2.99.tar.gz')
    for patch in patches[:2]:
        check(f'update: {patch.name} goes', patch.name not in after and f'{patch.name}: musl 1.2.99 has it\n' in output, output)
    for number, patch in enumerate(patches[2:]):
        equal(f'update: {patch.name} stays, from the new package', after[patch.name].line,
              patch.line.replace(patch.pools[0], f'pool:m/musl/musl_1.2.99-2.debian.tar.xz#debian/patches/known-{number}.patch'))
    equal('update: a new patch', after[f'musl-{fresh_commit[:8]}'].line, f'musl-1781bcc3 {fresh_commit} 2026-04-10 '
          f'{hashlib.sha256(fresh).hexdigest()} MIT musl-1781bcc3.diff pool:m/musl/musl_1.2.99-2.debian.tar.xz#debian/patches/'
          f'fresh.patch https://git.musl-libc.org/cgit/musl/patch/?id={fresh_commit}')
    check('update: what upstream does not confirm is for a human', code != 0 and re.search(
        f'BY HAND: https://git.musl-libc.org/cgit/musl/patch/.id={fresh_commit} cannot be had', output), (code, output))
    equal('update: order of the lock', list(after), ['mbedtls', 'cjson', 'libyaml', 'musl', patches[2].name, patches[3].name,
                                                     'musl-1781bcc3', 'certdata'])
    equal('update: root certificates', after['certdata'].line, f'certdata 3.200 2027-02-03 {hashlib.sha256(newer).hexdigest()} '
          'MPL-2.0 certdata_3.200.txt '
          'pool:c/ca-certificates/ca-certificates_20270304.tar.xz#ca-certificates/mozilla/certdata.txt '
          f'{RAW % "3_200"} pool:n/nss/nss_3.200.orig.tar.gz#nss-3.200/nss/lib/ckfw/builtins/certdata.txt '
          'https://ftp.mozilla.org/pub/security/nss/releases/NSS_3_200_RTM/src/nss-3.200.tar.gz'
          '#nss-3.200/nss/lib/ckfw/builtins/certdata.txt')
    check('update: shows which roots come and go', f'\n  + A renamed root\n  - {labels[0]}\n' in output, output)
    check('update: shows the lines', all(f'\n{sign}{line}\n' in output for sign, line in (
        ('-', before['cjson'].line), ('+', after['cjson'].line))), output)
    server.put(after['musl-1781bcc3'].urls[0], as_published(fresh, 3, 'cgit'))
    shutil.rmtree(cache)
    os.makedirs(cache)
    lock = read(os.path.join(place.folder, 'vendor/lock'))
    without = lock.replace(after['mbedtls'].line.encode() + b'\n', b'')    # it is big
    write(os.path.join(place.folder, 'vendor/lock'), without)
    code, output = place.fetch(**settings)
    write(os.path.join(place.folder, 'vendor/lock'), lock)
    equal('update: the new lock can be fetched', (code, read(os.path.join(place.src, 'musl/VERSION')) if code == 0 else output),
          (0, b'1.2.98\n'))
    code, output = place.run('make', '-s', 'update', **settings)
    equal('update: once more changes nothing', (code, 'vendor/lock stays as it is' in output), (0, True))

    # The same release with other bytes upstream and in the pool.
    pool.add('cjson', '1.7.21-1', 'c/cjson', {'cjson_1.7.21.orig.tar.gz': cjson})
    server.put(after['cjson'].urls[0].replace('1.7.20', '1.7.21'), libyaml)
    pool.close()
    code, output = place.run('vendor/update.sh', **settings)
    check('update: sources that differ are for a human',
          code == 1 and 'BY HAND: cjson 1.7.21: its sources differ\n' in output, output)
    equal('update: then the line stays', place.lock()['cjson'].line, after['cjson'].line)
    server.shutdown()


def main():
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, 'files')
        os.mkdir(folder)
        for entry in LOCK.values():
            os.symlink(vendored(entry), os.path.join(folder, entry.file))
        test_lock()
        expected = test_folder(tmp, folder)
        test_upstream(tmp, expected)
        test_pool(tmp, expected)
        test_checksums(tmp)
        if shutil.which('apt-get'):
            test_update(tmp, folder)
        else:
            print('skipped make update: it needs apt-get')
    print(f'{counts[True]} passed, {counts[False]} failed')
    return 1 if counts[False] else 0


sys.exit(main())
