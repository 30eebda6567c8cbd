#!/usr/bin/env python3
"""
Checks the archives of build/dist, and the lists of parts (SBOM) in them and beside them, against vendor/lock: test/archives.py
FOLDER VERSION NAME... with the names of the platforms that must be there. SOURCE_DATE_EPOCH is the date that all files must have.
The last line is `N passed, N failed`.
"""

import datetime
import hashlib
import json
import os
import re
import struct
import sys
import tarfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EPOCH = int(os.environ['SOURCE_DATE_EPOCH'])
LINKED = {'mbedtls', 'libyaml', 'cjson', 'certdata', 'libgcc'}
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


def read_lock():
    """Returns {name: (version, SHA-256, licence)} of vendor/lock."""
    rows = [line.split() for line in read(os.path.join(ROOT, 'vendor/lock')).decode().splitlines()]
    return {row[0]: (row[1], row[3], row[4]) for row in rows if row and not row[0].startswith('#')}


# ---- The archives ---------------------------------------------------------------------------------------------------


def read_tar(name, path):
    """Returns {path: content} of a .tar.gz, with what can be wrong in its headers checked."""
    raw = read(path)
    equal(f'{name}: gzip tells no name and no time', (raw[3], raw[4:8]), (0, bytes(4)))
    files = {}
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for m in members:
            check(f'{name}: {m.name} is a file or a folder', m.isfile() or m.isdir(), m.type)
            equal(f'{name}: owner of {m.name}', (m.uid, m.gid, m.uname, m.gname), (0, 0, '', ''))
            equal(f'{name}: mode of {m.name}', oct(m.mode),
                  oct(0o755 if m.isdir() or m.name.endswith('/butler_webhook') else 0o644))
            equal(f'{name}: date of {m.name}', m.mtime, EPOCH)
            if m.isfile():
                files[m.name] = tar.extractfile(m).read()
    names = [m.name for m in members]
    check(f'{name}: each name once', len(set(names)) == len(names), names)
    return files


def read_zip(name, path):
    """The same for a .zip."""
    files = {}
    when = datetime.datetime.fromtimestamp(EPOCH + EPOCH % 2, datetime.timezone.utc)  # zip rounds up to 2 s
    with zipfile.ZipFile(path) as archive:
        equal(f'{name}: checksums', archive.testzip(), None)
        for m in archive.infolist():
            equal(f'{name}: mode of {m.filename}', oct(m.external_attr >> 16),
                  oct(0o100755 if m.filename.endswith('.exe') else 0o100644))
            equal(f'{name}: date of {m.filename}', m.date_time, tuple(when.timetuple()[:6]))
            equal(f'{name}: {m.filename} has no more about its owner', m.extra, b'')
            files[m.filename] = archive.read(m)
        names = archive.namelist()
    equal(f'{name}: sorted', names, sorted(names))
    return files


def check_files(name, files, top):
    """The names and the contents of the files in an archive."""
    windows = name.startswith('windows')
    samples = ['LocalLogConfig-with-Butler.xml', 'LocalLogConfig.xml', 'full.yaml', 'minimal.yaml']
    samples += [] if windows else ['butler_webhook.service']
    expected = ['LICENSE', 'NOTICES.txt', 'README.md', 'butler_webhook.exe' if windows else 'butler_webhook', 'sbom.cdx.json']
    equal(f'{name}: the files in {top}', sorted(files),
          sorted(f'{top}/{f}' for f in expected + ['samples/' + s for s in samples]))
    for path, content in files.items():
        inner = path.partition('/')[2]
        if inner in ('LICENSE', 'README.md') or inner.startswith('samples/'):
            end = b'\r\n' if windows else b'\n'
            equal(f'{name}: {inner} is ours, with the right line ends', hashlib.sha256(content).hexdigest(),
                  hashlib.sha256(read(os.path.join(ROOT, inner)).replace(b'\n', end)).hexdigest())
    notices = files.get(f'{top}/NOTICES.txt', b'').decode()
    equal(f'{name}: line ends of NOTICES.txt', notices.count('\n'),
          notices.count('\r\n') if windows else len(notices.splitlines()))
    for word, wanted in (('The butler_webhook authors', True), ('Mbed TLS', True), ('libyaml', True), ('cJSON', True),
                         ('libgcc', True),
                         ('Mozilla Public License', True), ('musl', not windows), ('mingw-w64', windows),
                         ('Lucent', windows)):
        equal(f'{name}: NOTICES.txt names {word}', word in notices, wanted)


def check_exe(name, exe, version):
    """The version in the resources of a Windows program, and that no time is in its header."""
    at = struct.unpack_from('<I', exe, 0x3c)[0]
    equal(f'{name}: signature', exe[at:at + 4], b'PE\0\0')
    equal(f'{name}: time in the header', struct.unpack_from('<I', exe, at + 8)[0], 0)
    numbers = [int(n) for n in version.split('.')] + [0]
    fixed = exe.find(struct.pack('<I', 0xfeef04bd))
    check(f'{name}: has a version resource', fixed > 0)
    if fixed > 0:
        high, low, product_high, product_low = struct.unpack_from('<4I', exe, fixed + 8)
        for kind, a, b in (('file', high, low), ('product', product_high, product_low)):
            equal(f'{name}: {kind} version in numbers', [a >> 16, a & 0xffff, b >> 16, b & 0xffff], numbers)
    for key, value in (('FileVersion', version), ('ProductVersion', version), ('CompanyName', 'The butler_webhook authors'),
                       ('FileDescription', 'Calls webhooks when Qlik Sense reload tasks fail'), ('ProductName', 'butler_webhook'),
                       ('OriginalFilename', 'butler_webhook.exe'), ('LegalCopyright', None)):
        found = re.search((key + '\0').encode('utf-16-le') + rb'(?:\0\0)*((?:[^\0]\0)+)\0\0', exe)
        check(f'{name}: the resource {key}', found and value in (None, found[1].decode('utf-16-le')),
              found and found[1].decode('utf-16-le'))
    for word in (b'longPathAware>true<', b'level="asInvoker"', b'{1f676c76-80e1-4239-95bb-83d0f6d0da78}',
                 b'{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}'):
        check(f'{name}: the manifest says {word.decode()}', word in exe)
    check(f'{name}: the manifest leaves the code page alone', b'activeCodePage' not in exe)


# ---- The lists of parts ---------------------------------------------------------------------------------------------


def digests(component):
    """The SHA-256 sums of a component, or of the files within it."""
    own = [h['content'] for h in component.get('hashes', []) if h.get('alg') == 'SHA-256']
    return own or [d for inner in component.get('components', []) for d in digests(inner)]


def check_sbom(name, raw, version, lock):
    """What holds for each list; returns it as JSON."""
    sbom = json.loads(raw)
    for key, value in (('bomFormat', 'CycloneDX'), ('specVersion', '1.5'), ('version', 1)):
        equal(f'{name}: {key}', sbom.get(key), value)
    check(f'{name}: serialNumber', re.fullmatch(r'urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}',
                                                sbom.get('serialNumber', '')), sbom.get('serialNumber'))
    when = datetime.datetime.fromtimestamp(EPOCH, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
    equal(f'{name}: timestamp', sbom['metadata'].get('timestamp'), when)
    main = sbom['metadata']['component']
    equal(f'{name}: what it is about', [main.get(k) for k in ('type', 'name', 'version', 'purl', 'licenses')],
          ['application', 'butler_webhook', version, 'pkg:generic/butler_webhook@' + version, [{'license': {'id': 'MIT'}}]])
    refs = [main['bom-ref']] + [c['bom-ref'] for c in main.get('components', [])]
    for c in sbom['components']:
        who = f'{name}: {c.get("name")}'
        refs.append(c['bom-ref'])
        check(f'{who}: type', c.get('type') in ('library', 'data'), c.get('type'))
        check(f'{who}: version', c.get('version'))
        check(f'{who}: purl',
              re.fullmatch(r'pkg:(github|deb|generic)/[a-z0-9._/-]+@' + re.escape(str(c.get('version'))) + r'([?].+)?',
                           c.get('purl', '')), c.get('purl'))
        check(f'{who}: SHA-256', digests(c) and all(re.fullmatch('[0-9a-f]{64}', d) for d in digests(c)), digests(c))
        ids = [x.get('expression') or x['license'].get('id') or x['license'].get('name') for x in c.get('licenses', [])]
        check(f'{who}: licence', ids and all(ids), ids)
        check(f'{who}: where it comes from',
              any(r.get('url', '').startswith('https://') for r in c.get('externalReferences', [])))
        if c['name'] in lock:
            equal(f'{who}: as in vendor/lock', [c.get('version'), digests(c), ids],
                  [lock[c['name']][0], [lock[c['name']][1]], [lock[c['name']][2]]])
    check(f'{name}: each bom-ref once', len(set(refs)) == len(refs), refs)
    needs = {d['ref']: d['dependsOn'] for d in sbom['dependencies']}
    equal(f'{name}: dependencies name each component', sorted(needs), sorted(refs))
    check(f'{name}: dependencies name nothing else', all(r in refs for on in needs.values() for r in on))
    equal(f'{name}: compositions', sbom['compositions'][0].get('assemblies'), [main['bom-ref']])
    return sbom, needs


def linked_files(name):
    """The names of the files from beyond the build folder of which the linker says that something is in the binary."""
    folder = os.path.join(ROOT, 'build', {'linux-x64': 'linux', 'linux-arm64': 'arm64', 'windows-x64': 'windows'}[name])
    found = re.findall(r'^(?:LOAD )?(/.*?\.(?:o$|a(?=\()))', read(os.path.join(folder, 'map')).decode(), re.M)
    return {os.path.basename(path) for path in found if not path.startswith(os.path.join(ROOT, 'build'))}


def main():
    folder, version, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    lock = read_lock()
    linked_by = {'linux': LINKED | {part for part in lock if part.startswith('musl')},
                 'windows': LINKED | {'mingw-w64', 'libssp'}}
    top = 'butler_webhook-' + version
    inside = {}
    archives = []
    for name in names:
        windows = name.startswith('windows')
        archive = f'{top}-{name}' + ('.zip' if windows else '.tar.gz')
        archives.append(archive)
        path = os.path.join(folder, archive)
        files = (read_zip if windows else read_tar)(name, path)
        inner = 'butler_webhook' if windows else top
        check_files(name, files, inner)
        if windows:
            check_exe(name, files[f'{inner}/butler_webhook.exe'], version)
        sbom, needs = check_sbom(f'{name}: SBOM', files[f'{inner}/sbom.cdx.json'], version, lock)
        parts = [c['bom-ref'] for c in sbom['components']]
        equal(f'{name}: SBOM: the parts', {c['name'] for c in sbom['components']}, linked_by[name.partition('-')[0]])
        equal(f'{name}: SBOM: the files of the compiler that were linked in',
              {f['name'] for c in sbom['components'] for f in c.get('components', [])}, linked_files(name))
        equal(f'{name}: SBOM: butler_webhook depends on all', sorted(needs['pkg:generic/butler_webhook@' + version]),
              sorted(parts))
        inside[archive] = sorted(parts)
    sbom, needs = check_sbom('release: SBOM', read(os.path.join(folder, top + '.cdx.json')), version, lock)
    equal('release: SBOM: the archives', {c['name']: digests(c) for c in sbom['metadata']['component']['components']},
          {a: [hashlib.sha256(read(os.path.join(folder, a))).hexdigest()] for a in archives})
    for archive, parts in inside.items():
        equal(f'release: SBOM: what is in {archive}', needs.get(archive), parts)
    equal('release: the files', sorted(os.listdir(folder)), sorted(archives + [top + '.cdx.json', 'SHA256SUMS']))
    print(f'{counts[True]} passed, {counts[False]} failed')
    return 1 if counts[False] else 0


sys.exit(main())
