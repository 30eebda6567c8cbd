#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Checks the archives of build/dist, and the lists of parts (SBOM) in them and beside them, against vendor/lock: test/archives.py
FOLDER VERSION NAME... with the names of the platforms that must be there. SOURCE_DATE_EPOCH is the date that all files must have.
"""

import datetime
import json
import os
import re
import struct
import sys
import tarfile
import uuid
import zipfile

from checks import ROOT, check, equal, finish, read, read_lock, sha256

EPOCH = int(os.environ['SOURCE_DATE_EPOCH'])
FOLDER, VERSION, *PLATFORMS = sys.argv[1:]
TOP = 'butler_webhook-' + VERSION
MAIN = 'pkg:generic/butler_webhook@' + VERSION
LOCK = read_lock()
LINKED = {'mbedtls', 'libyaml', 'cjson', 'certdata', 'libgcc'}
BUILT = {'linux-x64': ('linux', 'butler_webhook'), 'linux-arm64': ('arm64', 'butler_webhook-arm64'),
         'windows-x64': ('windows', 'butler_webhook.exe')}
FILES = ['LICENSE', 'NOTICES.txt', 'README.md', 'samples/LocalLogConfig-with-Butler.xml', 'samples/LocalLogConfig.xml',
         'samples/full.yaml', 'samples/minimal.yaml', 'samples/prometheus_rules.yaml', 'sbom.cdx.json',
         *(f'samples/receivers/{name}' for name in os.listdir(os.path.join(ROOT, 'samples/receivers')) if '.yaml' in name),
         'samples/receivers/README.md']


def read_tar(name, path):
    """Returns {path: content} of a .tar.gz, with what can be wrong in its headers checked."""
    raw = read(path)
    equal(f'{name}: gzip tells no name and no time', (raw[3], raw[4:8]), (0, bytes(4)))
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for m in members:
            mode = 0o755 if m.isdir() or m.name.endswith('/butler_webhook') else 0o644
            equal(f'{name}: kind, owner, mode and date of {m.name}',
                  (m.isfile() or m.isdir(), m.uid, m.gid, m.uname, m.gname, oct(m.mode), m.mtime),
                  (True, 0, 0, '', '', oct(mode), EPOCH))
        equal(f'{name}: each name once', len({m.name for m in members}), len(members))
        return {m.name: tar.extractfile(m).read() for m in members if m.isfile()}


def read_zip(name, path):
    """The same for a .zip."""
    when = datetime.datetime.fromtimestamp(EPOCH + EPOCH % 2, datetime.timezone.utc)  # zip rounds up to 2 s
    with zipfile.ZipFile(path) as archive:
        equal(f'{name}: checksums', archive.testzip(), None)
        for m in archive.infolist():
            mode = 0o100755 if m.filename.endswith('.exe') else 0o100644
            equal(f'{name}: owner, mode and date of {m.filename}', (m.extra, oct(m.external_attr >> 16), m.date_time),
                  (b'', oct(mode), tuple(when.timetuple()[:6])))
        names = archive.namelist()
        equal(f'{name}: sorted, each name once', names, sorted(set(names)))
        return {file: archive.read(file) for file in names}


def check_files(name, files, inside):
    """The names and the contents of the files in an archive, all of which are in one folder."""
    windows = name.startswith('windows')
    more = ['butler_webhook.exe'] if windows else ['butler_webhook', 'samples/butler_webhook.service']
    equal(f'{name}: the files', sorted(files), sorted(f'{inside}/{file}' for file in FILES + more))
    for path, content in files.items():
        file = path.partition('/')[2]
        if file == more[0]:
            equal(f'{name}: the program', sha256(content), sha256(read(ROOT, 'build', BUILT[name][1])))
        elif file in ('LICENSE', 'README.md') or file.startswith('samples/'):
            ours = read(ROOT, file).replace(b'\n', b'\r\n' if windows else b'\n')
            equal(f'{name}: {file} is ours, with the right line ends', sha256(content), sha256(ours))
    notices = files[f'{inside}/NOTICES.txt'].decode()
    equal(f'{name}: line ends of NOTICES.txt', notices.count('\r\n'), notices.count('\n') if windows else 0)
    for word, wanted in (('Mbed TLS', True), ('musl', not windows), ('mingw-w64', windows), ('Lucent', windows)):
        equal(f'{name}: NOTICES.txt names {word}', word in notices, wanted)


def check_exe(name, exe):
    """The header of a Windows program, the version in its resources, and its manifest."""
    at = struct.unpack_from('<I', exe, 0x3c)[0]
    machine, _, time, _, _, _, kind = struct.unpack_from('<2H3I2H', exe, at + 4)
    optional = at + 24
    subsystem, flags = struct.unpack_from('<2H', exe, optional + 68)
    relocations = struct.unpack_from('<2I', exe, optional + 152)[1]
    equal(f'{name}: signature, x86-64, no time', (exe[at:at + 4], machine, time), (b'PE\0\0', 0x8664, 0))
    equal(f'{name}: stripped of symbols and debugging, not of relocations', (kind & 0x20d, relocations > 0), (0x20c, True))
    equal(f'{name}: for the console; HIGH_ENTROPY_VA, DYNAMIC_BASE, NX_COMPAT', (subsystem, flags & 0x160), (3, 0x160))
    major, minor, patch = map(int, VERSION.split('.'))
    packed = struct.pack('<2I', major << 16 | minor, patch << 16)
    fixed = exe.find(struct.pack('<I', 0xfeef04bd)) + 8
    equal(f'{name}: file and product version in numbers', exe[fixed:fixed + 16], packed + packed)
    for key, value in (('FileVersion', VERSION), ('ProductVersion', VERSION), ('CompanyName', 'The butler_webhook authors'),
                       ('FileDescription', 'Calls webhooks when Qlik Sense reload tasks fail'), ('ProductName', 'butler_webhook'),
                       ('OriginalFilename', 'butler_webhook.exe'), ('LegalCopyright', '')):
        row = re.escape((key + '\0').encode('utf-16-le')) + rb'(?:\0\0)*' + re.escape(value.encode('utf-16-le'))
        check(f'{name}: the resource {key}', re.search(row + (rb'\0\0' if value else rb'[^\0]\0'), exe))
    for word, wanted in ((b'longPathAware>true<', True), (b'level="asInvoker"', True), (b'activeCodePage', False),
                         (b'{1f676c76-80e1-4239-95bb-83d0f6d0da78}', True), (b'{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}', True)):
        equal(f'{name}: the manifest says {word.decode()}', word in exe, wanted)


def digests(component):
    """The SHA-256 sums of a component, or of the files within it."""
    own = [h['content'] for h in component.get('hashes', []) if h.get('alg') == 'SHA-256']
    return own or [digest for inner in component.get('components', []) for digest in digests(inner)]


def check_component(who, part):
    """What holds for each part of a list."""
    version = part['version']
    check(f'{who}: type', part['type'] in ('library', 'data'), part['type'])
    purl = r'pkg:(github|deb|generic)/[a-z0-9._/-]+@' + re.escape(version) + r'([?].+)?'
    check(f'{who}: version, purl', version and re.fullmatch(purl, part['purl']), part['purl'])
    check(f'{who}: SHA-256', digests(part) and all(re.fullmatch('[0-9a-f]{64}', digest) for digest in digests(part)))
    licences = [x.get('expression') or x['license'].get('id') or x['license'].get('name') for x in part['licenses']]
    check(f'{who}: licence', licences and all(licences), licences)
    origins = [reference['url'] for reference in part['externalReferences']]
    check(f'{who}: where it comes from', any(origin.startswith('https://') for origin in origins), origins)
    if part['name'] in LOCK:
        entry = LOCK[part['name']]
        equal(f'{who}: as in vendor/lock', (version, digests(part), licences), (entry.version, [entry.sum], [entry.licence]))


def check_sbom(name, raw):
    """What holds for each list. Returns it as JSON, and {component: what it depends on}."""
    sbom = json.loads(raw)
    equal(f'{name}: format', [sbom.get(key) for key in ('bomFormat', 'specVersion', 'version')], ['CycloneDX', '1.5', 1])
    number = uuid.UUID(sbom['serialNumber'].removeprefix('urn:uuid:'))
    equal(f'{name}: serialNumber', (sbom['serialNumber'], number.version), (number.urn, 5))
    when = datetime.datetime.fromtimestamp(EPOCH, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
    equal(f'{name}: timestamp', sbom['metadata'].get('timestamp'), when)
    main = sbom['metadata']['component']
    equal(f'{name}: what it is about', [main.get(key) for key in ('type', 'name', 'version', 'purl', 'licenses')],
          ['application', 'butler_webhook', VERSION, MAIN, [{'license': {'id': 'MIT'}}]])
    for part in sbom['components']:
        check_component(f'{name}: {part["name"]}', part)
    refs = [part['bom-ref'] for part in (main, *main.get('components', []), *sbom['components'])]
    needs = {row['ref']: row['dependsOn'] for row in sbom['dependencies']}
    equal(f'{name}: dependencies name each component once', sorted(needs), sorted(refs))
    check(f'{name}: dependencies name nothing else', all(ref in refs for on in needs.values() for ref in on))
    equal(f'{name}: compositions', sbom['compositions'][0].get('assemblies'), [main['bom-ref']])
    return sbom, needs


def check_archive(name, archive):
    """All of one archive. Returns the parts that its list names: what is linked into the binary."""
    windows = name.startswith('windows')
    inside = 'butler_webhook' if windows else TOP
    files = (read_zip if windows else read_tar)(name, os.path.join(FOLDER, archive))
    check_files(name, files, inside)
    if windows:
        check_exe(name, files[f'{inside}/butler_webhook.exe'])
    sbom, needs = check_sbom(f'{name}: SBOM', files[f'{inside}/sbom.cdx.json'])
    others = {'mingw-w64', 'libssp'} if windows else {part for part in LOCK if part.startswith('musl')}
    equal(f'{name}: SBOM: the parts', {part['name'] for part in sbom['components']}, LINKED | others)
    # Files from beyond the build folder, as the linker's map has them.
    linked = re.findall(r'^(?:LOAD )?(/.*?\.(?:o$|a(?=\()))', read(ROOT, 'build', BUILT[name][0], 'map').decode(), re.M)
    equal(f'{name}: SBOM: the files of the compiler that were linked in',
          {file['name'] for part in sbom['components'] for file in part.get('components', [])},
          {os.path.basename(path) for path in linked if not path.startswith(os.path.join(ROOT, 'build'))})
    parts = sorted(part['bom-ref'] for part in sbom['components'])
    equal(f'{name}: SBOM: butler_webhook depends on all', sorted(needs[MAIN]), parts)
    return parts


def main():
    archives = {name: f'{TOP}-{name}' + ('.zip' if name.startswith('windows') else '.tar.gz') for name in PLATFORMS}
    parts = {archive: check_archive(name, archive) for name, archive in archives.items()}
    sbom, needs = check_sbom('release: SBOM', read(FOLDER, TOP + '.cdx.json'))
    equal('release: SBOM: the archives', {part['name']: digests(part) for part in sbom['metadata']['component']['components']},
          {archive: [sha256(read(FOLDER, archive))] for archive in parts})
    for archive in parts:
        equal(f'release: SBOM: what is in {archive}', needs.get(archive), parts[archive])
    equal('release: the files', sorted(os.listdir(FOLDER)), sorted([*parts, TOP + '.cdx.json', 'SHA256SUMS']))
    return finish()


sys.exit(main())
