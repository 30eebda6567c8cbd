#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Tests vendor/fetch.sh and vendor/update.sh without a network: a local server stands for all the projects' addresses, a folder for
the pool of a Debian mirror. The files of vendor/lock must be in vendor/cache or $VENDOR_DIR.
"""

import http.server
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

from checks import ROOT, Entry, check, equal, finish, read, read_lock, sha256, skip

COMMIT = '1781bcc309430129efddeb6a7356487cd505227a'
LOCK = read_lock()
PATCHES = [entry for name, entry in LOCK.items() if name.startswith('musl-')]
NO_NETWORK = next((command for command in (['unshare', '-n'], ['unshare', '-rn'])
                   if shutil.which('unshare') and subprocess.run([*command, 'true'], capture_output=True).returncode == 0), [])


def write(content, *path):
    path = os.path.join(*path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
        file.write(content)


def paths(folder):
    """All files in a folder."""
    return [os.path.relpath(os.path.join(where, file), folder) for where, _, files in os.walk(folder) for file in files]


def archive(members, date='1970-01-01'):
    """Returns a .tar.gz of {name: content}, also for .tar.xz: tar tells them apart. The date is that of all members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w:gz', compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mtime = time.mktime(time.strptime(date + ' 12:00', '%Y-%m-%d %H:%M'))
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def vendored(entry):
    """The path of the file that a line of the lock names, as `make` has fetched it."""
    for folder in (os.environ.get('VENDOR_DIR'), os.path.join(ROOT, 'vendor/cache')):
        if folder and os.path.exists(os.path.join(folder, entry.file)):
            return os.path.join(folder, entry.file)
    sys.exit(f'{entry.file} is not in vendor/cache: run make first')


def as_published(diff, place=40):
    """The patch around what it changes, as a page of the repository prints it, or a mail."""
    text = re.sub('(?m)^(diff --git .*\n(?:new file mode .*\n)?)', '\\1index 9605c8e9..008c93f0 100644\n', diff.decode())
    text = re.sub(r'(?m)^@@ -1,(\d+) \+1,(\d+) @@$', rf'@@ -{place},\1 +{place + 3},\2 @@ size_t iconv(iconv_t cd)', text)
    return (f'From {COMMIT} Mon Sep 17 00:00:00 2001\nFrom: Somebody <a@example.org>\nDate: Thu, 9 Apr 2026 22:51:30 -0400\n'
            f'Subject: a change\n\nas it was said\n---\n src/a.c | 2 +-\n\n{text}-- \ncgit v1.2.3\n\n').encode()


class Upstream(http.server.BaseHTTPRequestHandler):
    """Stands for all the projects: https://HOST/PATH is /HOST/PATH here."""

    files, asked = {}, []       # the answers, and the requests

    def do_GET(self):
        content = self.files.get(self.path)
        self.asked.append(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Length', str(len(content or b'')))
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *arguments):
        pass


SERVER = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Upstream)


class Place:
    """A copy of the project's vendor/ with an empty cache, and a pool of its own. The projects forget what was there before."""

    def __init__(self, tmp, name):
        self.folder = os.path.join(tmp, name)
        self.cache = os.path.join(self.folder, 'vendor/cache')
        self.src = os.path.join(self.folder, 'build/src')
        self.pool = os.path.join(tmp, name + '.pool')
        self.stanzas = ''
        shutil.copytree(os.path.join(ROOT, 'vendor'), os.path.join(self.folder, 'vendor'), ignore=shutil.ignore_patterns('cache'))
        os.makedirs(self.cache)
        os.makedirs(self.pool)
        Upstream.files.clear()
        Upstream.asked.clear()

    def set_lock(self, *entries):
        write(''.join(entry.line + '\n' for entry in entries).encode(), self.folder, 'vendor/lock')

    def put(self, source, content):
        """Puts a file where a source without #MEMBER is looked for."""
        if source.startswith('pool:'):
            write(content, self.pool, 'pool/main', source[len('pool:'):])
        else:
            Upstream.files[source.replace('https:/', '', 1)] = content

    def publish(self, contents):
        """Puts what is at these sources, so that they give {source: content}: it itself, a patch, or an archive."""
        files = {}
        for source, content in contents.items():
            path, _, member = source.partition('#')
            if content.startswith(b'diff --git '):
                content = as_published(content)
            files.setdefault(path, {})[member] = content
        for path, members in files.items():
            self.put(path, members.get('') or archive(members))

    def run(self, *command, **settings):
        """Runs a command there; its exit code and what it prints."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith('VENDOR_') and key != 'MAKEFLAGS'}
        own = {'VENDOR_POOL': 'file://' + self.pool, 'VENDOR_MIRROR': f'http://127.0.0.1:{SERVER.server_port}', 'no_proxy': '*'}
        done = subprocess.run(command, cwd=self.folder, env={**kept, **own, **settings}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8', timeout=200, check=False)
        return done.returncode, done.stdout

    def add_package(self, package, version, directory, files):
        """A source package for the mirror's lists."""
        for name, content in files.items():
            self.put(f'pool:{directory}/{name}', content)
        sums = ''.join(f'\n {sha256(content)} {len(content)} {name}' for name, content in files.items())
        self.stanzas += (f'Package: {package}\nBinary: {package}\nVersion: {version}\nDirectory: pool/main/{directory}\n'
                         f'Checksums-Sha256:{sums}\n\n')

    def write_lists(self):
        """The mirror's lists: all packages are in sid."""
        for suite in ('stable', 'testing', 'sid'):
            text = self.stanzas.encode() if suite == 'sid' else b''
            write(text, self.pool, 'dists', suite, 'main/source/Sources')
            sums = f'SHA256:\n {sha256(text)} {len(text)} main/source/Sources\n'
            write(f'Codename: {suite}\nComponents: main\n{sums}'.encode(), self.pool, 'dists', suite, 'Release')


def test_lock():
    for entry in LOCK.values():
        check(f'lock: {entry.name} has a date', re.fullmatch(r'20\d\d-\d\d-\d\d', entry.date), entry.date)
    for entry in PATCHES:
        check(f'lock: {entry.name} names its commit', entry.urls[0].endswith('?id=' + entry.version)
              and entry.name == 'musl-' + entry.version[:8], entry.line)


def test_unpacked():
    """What `make` has unpacked with this lock and these scripts."""
    folder = os.path.join(ROOT, 'build/src')
    files = paths(folder)
    for path in ('mbedtls/library/ssl_tls.c', 'cjson/cJSON.c', 'libyaml/src/api.c', 'musl/configure', 'certdata.txt',
                 'musl/src/locale/gb18030utf.h'):     # the last one comes with a patch
        check(f'unpacked: {path} is there', path in files)
    check('unpacked: no backups of patched files', not [path for path in files if path.endswith(('.orig', '.rej'))])
    specs = read(folder, 'musl/tools/musl-gcc.specs.sh').decode()
    check('unpacked: musl knows -static-pie', '%{shared:;static-pie:$libdir/rcrt1.o; :$libdir/Scrt1.o}' in specs
          and '%{static-pie:-static -pie --no-dynamic-linker}' in specs)


def test_folder(tmp, folder):
    """VENDOR_DIR alone, with the network off where that can be had."""
    place = Place(tmp, 'folder')
    equal('from a folder: ends well', place.run(*NO_NETWORK, 'vendor/fetch.sh', VENDOR_DIR=folder), (0, ''))
    equal('from a folder: nobody is asked, nothing is copied to the cache', (Upstream.asked, os.listdir(place.cache)), ([], []))
    less, gone = os.path.join(tmp, 'less'), LOCK['musl']
    shutil.copytree(folder, less, symlinks=True)
    os.unlink(os.path.join(less, gone.file))
    code, output = place.run('vendor/fetch.sh', 'build/src', VENDOR_DIR=less)
    equal('a file is missing: exit code', code, 1)
    for word in (gone.file + ' was found nowhere', less, *gone.sources, 'vendor/README.md'):
        check(f'a file is missing: names {word}', word in output, output)
    check('a file is missing: nothing is unpacked', not os.path.exists(place.src))
    place.set_lock(LOCK['cjson'], LOCK['certdata'])
    equal('from a folder, unpacked: ends well', place.run('vendor/fetch.sh', 'build/src', VENDOR_DIR=less), (0, ''))
    equal('from a folder, unpacked: is there', sorted(os.listdir(place.src)), ['certdata.txt', 'cjson'])
    equal('no such folder', place.run('vendor/fetch.sh', VENDOR_DIR='/nowhere'),
          (1, 'vendor/fetch.sh: VENDOR_DIR: no such folder: /nowhere\n'))


def test_sources(tmp):
    """Everything from the projects themselves, which have it at the last of their addresses; everything from a mirror's pool."""
    for origin, chosen, asked in (
            ('upstream', {entry.urls[-1]: entry for entry in LOCK.values()},
             [url.partition('#')[0] for entry in LOCK.values() for url in entry.urls]),
            ('pool', {entry.pools[0]: entry for entry in LOCK.values()}, [])):
        place = Place(tmp, origin)
        place.publish({source: read(vendored(entry)) for source, entry in chosen.items()})
        code, output = place.run('vendor/fetch.sh')
        equal(f'from {origin}: exit code', code, 0)
        equal(f'from {origin}: says of each where it comes from', re.findall('  from (.*)', output), list(chosen))
        equal(f'from {origin}: each address is asked for once', Upstream.asked, [url.replace('https:/', '') for url in asked])
        equal(f'from {origin}: the files', {name: sha256(read(place.cache, name)) for name in os.listdir(place.cache)},
              {entry.file: entry.sum for entry in LOCK.values()})
        equal(f'from {origin}: then from the cache', place.run('vendor/fetch.sh'), (0, ''))


def test_checksums(tmp):
    """A wrong archive, patch or text is refused, from wherever it comes; the good file before it is not unpacked either."""
    good = LOCK['cjson']
    for entry in (LOCK['libyaml'], PATCHES[0], LOCK['certdata']):
        bad = read(vendored(entry)) + b'\n'
        if entry in PATCHES:
            bad = re.sub(rb'\n\+(?!\+)', rb'\n+ ', bad[:-1], count=1)
        for origin in ('folder', 'cache', 'pool', 'upstream'):
            name = f'{entry.name}, wrong from {origin}'
            place = Place(tmp, name.replace(' ', '-'))
            place.set_lock(good, entry)
            shutil.copy(vendored(good), place.cache)
            write(b'', place.src, 'before')
            said = {'folder': 'bad', 'cache': 'vendor/cache', 'pool': entry.pools[0], 'upstream': entry.urls[0]}[origin]
            if origin in ('pool', 'upstream'):
                place.publish({said: bad})
            else:
                write(bad, place.folder, said, entry.file)
            code, output = place.run('vendor/fetch.sh', 'build/src', **({'VENDOR_DIR': said} if origin == 'folder' else {}))
            equal(f'{name}: exit code', code, 1)
            message = f'wrong checksum of {entry.file} (from {said})\n  expected {entry.sum}\n  found    {sha256(bad)}\n'
            check(f'{name}: the message', message in output, output)
            equal(f'{name}: nothing is unpacked', os.listdir(place.src), ['before'])
            equal(f'{name}: it stays out of the cache', os.path.exists(os.path.join(place.cache, entry.file)), origin == 'cache')


def patched_musl(tmp, patches):
    """An archive of a musl that has these patches."""
    top = os.path.join(tmp, 'patched')
    os.mkdir(top)
    subprocess.run(['tar', '-xf', vendored(LOCK['musl']), '-C', top, '--strip-components=1', '--wildcards',
                    '*/iconv.c', '*/qsort.c', '*/musl-gcc.specs.sh', '*/VERSION'], check=True)
    for patch in patches:
        subprocess.run(['patch', '-s', '-p1', '-d', top, '-i', vendored(patch)], check=True)
    members = {'musl-1.2.99/' + path: read(top, path) for path in paths(top) if not path.endswith('.orig')}
    return archive(members, date='2099-01-02')


def renewed(name, version, date, content):
    """The line of the lock for another version."""
    old = LOCK[name]
    line = old.line.replace(old.version, version).replace(old.version.replace('.', '_'), version.replace('.', '_'))
    line = re.sub(r'ca-certificates_\d+', 'ca-certificates_20990304', line)
    return Entry(line.replace(old.date, date).replace(old.sum, sha256(content)))


def test_update(tmp, folder):
    """make update: newer releases in the pool and upstream, patches that a release has, new ones, another list of roots."""
    dry = subprocess.run(['make', '-n', 'update'], cwd=ROOT, stdout=subprocess.PIPE, encoding='utf-8', check=False)
    check('update: make update runs it', 'vendor/update.sh' in dry.stdout, dry.stdout)
    place = Place(tmp, 'update')
    os.rmdir(place.cache)
    shutil.copytree(folder, place.cache, symlinks=True)

    # Nothing is newer: an old version, and Mbed TLS's next main version, which is no update.
    place.add_package('cjson', '1.0-1', 'c/cjson', {'cjson_1.0.orig.tar.gz': b'old'})
    place.add_package('mbedtls', '4.0.0-1', 'm/mbedtls', {'mbedtls_4.0.0.orig.tar.bz2': b'other'})
    place.write_lists()
    code, output = place.run('vendor/update.sh')
    equal('update: nothing is newer', (code, output.count(' is the newest\n'), 'vendor/lock stays as it is' in output),
          (0, 5, True))
    equal('update: the lock stays', read(place.folder, 'vendor/lock'), read(ROOT, 'vendor/lock'))

    # cJSON from both; libyaml only upstream, where its tags name it. From here on without Mbed TLS, which takes long to unpack.
    place.stanzas = ''
    place.set_lock(*(entry for entry in LOCK.values() if entry.name != 'mbedtls'))
    new_cjson = archive({'cJSON-1.99/cJSON.c': b'int x;\n'}, date='2099-03-04')
    cjson = renewed('cjson', '1.99.0', '2099-03-04', new_cjson)
    place.add_package('cjson', '1.99.0-1', 'c/cjson', {cjson.file: new_cjson})
    place.put(cjson.urls[0], new_cjson)
    new_libyaml = archive({'libyaml-0.99/src/api.c': b'int y;\n'}, date='2099-05-06')
    libyaml = renewed('libyaml', '0.99.0', '2099-05-06', new_libyaml)
    place.put('https://github.com/yaml/libyaml/info/refs?service=git-upload-pack', b''.join(
        b'%040d\trefs/tags/%s\n' % (number, tag) for number, tag in enumerate((b'0.2.5', b'0.99.0', b'dist-0.99.9'), 1)))
    place.put('https://github.com/yaml/libyaml/HEAD', b'ref: refs/heads/master\n')
    place.put(libyaml.urls[0], new_libyaml)
    # A musl that has two of the patches; of its package's patches two are known, two are done otherwise, one is new.
    new_musl = patched_musl(tmp, PATCHES[:2])
    musl = renewed('musl', '1.2.99', '2099-01-02', new_musl)
    diff = b'diff --git a/VERSION b/VERSION\n--- a/VERSION\n+++ b/VERSION\n@@ -1 +1 @@\n-1.2.5\n+1.2.98\n'
    series = {'static-pie.patch': b'', 'renameat2.patch': b'', 'known-0.patch': as_published(read(vendored(PATCHES[2])), 12),
              'known-1.patch': as_published(read(vendored(PATCHES[3])), 13), 'fresh.patch': as_published(diff, 1)}
    packaging = archive({**{'debian/patches/' + name: content for name, content in series.items()},
                         'debian/patches/series': ('\n'.join(series) + '\n').encode()})
    place.add_package('musl', '1.2.99-2', 'm/musl', {musl.file: new_musl, 'musl_1.2.99-2.debian.tar.xz': packaging})
    patches = 'pool:m/musl/musl_1.2.99-2.debian.tar.xz#debian/patches/'
    fresh = Entry(f'musl-1781bcc3 {COMMIT} 2026-04-10 {sha256(diff)} MIT musl-1781bcc3.diff {patches}fresh.patch '
                  f'https://git.musl-libc.org/cgit/musl/patch/?id={COMMIT}')
    # Root certificates: one renamed. NSS tells the version, ca-certificates has the same file.
    text = read(vendored(LOCK['certdata'])).decode('latin-1')
    root = re.search(r'^CKA_CLASS CK_OBJECT_CLASS CKO_CERTIFICATE\n(?:.*\n)*?CKA_LABEL UTF8 "(.*)"$', text, re.M)[1]
    new_roots = text.replace(f'CKA_LABEL UTF8 "{root}"', 'CKA_LABEL UTF8 "A renamed root"').encode('latin-1')
    certdata = renewed('certdata', '3.999', '2099-02-03', new_roots)
    for (package, version), source in zip((('ca-certificates', '20990304'), ('nss', '2:3.999-1')), certdata.pools):
        path, _, member = source[len('pool:'):].partition('#')
        place.add_package(package, version, os.path.dirname(path), {
            os.path.basename(path): archive({member: new_roots}, date='2099-02-03')})
    place.put(certdata.urls[0], new_roots)
    place.write_lists()
    code, output = place.run('vendor/update.sh')
    after = read_lock(place.folder)
    check('update: what upstream does not confirm is for a human',
          code != 0 and f'BY HAND: {fresh.urls[0]} cannot be had' in output, (code, output))
    for line in (*(f'{new.name} {LOCK[new.name].version} ({LOCK[new.name].date}) -> {new.version}\n'
                   for new in (cjson, libyaml, musl, certdata)),
                 *(f'{patch.name}: musl 1.2.99 has it\n' for patch in PATCHES[:2]),
                 f'\n  + A renamed root\n  - {root}\n', f'\n-{LOCK["cjson"].line}\n', f'\n+{cjson.line}\n'):
        check(f'update: says {line.strip()}', line in output, output)
    equal('update: the lock', [entry.line for entry in after.values()], [
        cjson.line, libyaml.line.replace(libyaml.pools[0] + ' ', ''), musl.line,
        *(patch.line.replace(patch.pools[0], f'{patches}known-{number}.patch') for number, patch in enumerate(PATCHES[2:])),
        fresh.line, certdata.line])

    # The new lock can be fetched; once more changes nothing.
    place.put(fresh.urls[0], as_published(diff, 3))
    shutil.rmtree(place.cache)
    os.makedirs(place.cache)
    code, output = place.run('vendor/fetch.sh', 'build/src')
    equal('update: the new lock can be fetched', (code, read(place.src, 'musl/VERSION') if code == 0 else output),
          (0, b'1.2.98\n'))
    code, output = place.run('vendor/update.sh')
    equal('update: once more changes nothing', (code, 'vendor/lock stays as it is' in output), (0, True))

    # The same release with other bytes upstream and in the pool.
    place.set_lock(cjson)
    place.add_package('cjson', '1.99.1-1', 'c/cjson', {'cjson_1.99.1.orig.tar.gz': new_cjson})
    place.put(cjson.urls[0].replace('1.99.0', '1.99.1'), new_libyaml)
    place.write_lists()
    code, output = place.run('vendor/update.sh')
    check('update: sources that differ are for a human',
          code == 1 and 'BY HAND: cjson 1.99.1: its sources differ\n' in output, output)
    equal('update: then the line stays', read_lock(place.folder)['cjson'].line, cjson.line)


def main():
    threading.Thread(target=SERVER.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, 'files')
        os.mkdir(folder)
        for entry in LOCK.values():
            os.symlink(vendored(entry), os.path.join(folder, entry.file))
        test_lock()
        test_unpacked()
        test_folder(tmp, folder)
        test_sources(tmp)
        test_checksums(tmp)
        if shutil.which('apt-get'):
            test_update(tmp, folder)
        else:
            skip('make update', 'it needs apt-get')
    return finish()


sys.exit(main())
