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
import zipfile

from checks import ROOT, check, equal, finish, read, read_lock, sha256

EPOCH = int(os.environ['SOURCE_DATE_EPOCH'])
LOCK = read_lock()
LINKED = {'mbedtls', 'libyaml', 'cjson', 'certdata', 'libgcc'}
OBJECTS = {'linux-x64': 'linux', 'linux-arm64': 'arm64', 'windows-x64': 'windows'}
SAMPLES = ['LocalLogConfig-with-Butler.xml', 'LocalLogConfig.xml', 'full.yaml', 'minimal.yaml']
UUID5 = r'urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}'


def read_tar(name, path):
    """Returns {path: content} of a .tar.gz, with what can be wrong in its headers checked."""
    raw = read(path)
    equal(f'{name}: gzip tells no name and no time', (raw[3], raw[4:8]), (0, bytes(4)))
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for m in members:
            check(f'{name}: {m.name} is a file or a folder', m.isfile() or m.isdir(), m.type)
            mode = 0o755 if m.isdir() or m.name.endswith('/butler_webhook') else 0o644
            equal(f'{name}: owner, mode and date of {m.name}', (m.uid, m.gid, m.uname, m.gname, oct(m.mode), m.mtime),
                  (0, 0, '', '', oct(mode), EPOCH))
        names = [m.name for m in members]
        check(f'{name}: each name once', len(set(names)) == len(names), names)
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


def check_files(name, files, top):
    """The names and the contents of the files in an archive."""
    windows = name.startswith('windows')
    samples = SAMPLES + ([] if windows else ['butler_webhook.service'])
    expected = ['LICENSE', 'NOTICES.txt', 'README.md', 'butler_webhook.exe' if windows else 'butler_webhook', 'sbom.cdx.json']
    expected += ['samples/' + sample for sample in samples]
    equal(f'{name}: the files', sorted(files), sorted(f'{top}/{file}' for file in expected))
    for path, content in files.items():
        inner = path.partition('/')[2]
        if inner in ('LICENSE', 'README.md') or inner.startswith('samples/'):
            ours = read(ROOT, inner).replace(b'\n', b'\r\n' if windows else b'\n')
            equal(f'{name}: {inner} is ours, with the right line ends', sha256(content), sha256(ours))
    notices = files.get(f'{top}/NOTICES.txt', b'').decode()
    equal(f'{name}: line ends of NOTICES.txt', notices.count('\n'),
          notices.count('\r\n') if windows else len(notices.splitlines()))
    for word in ('The butler_webhook authors', 'Mbed TLS', 'libyaml', 'cJSON', 'libgcc', 'Mozilla Public License'):
        check(f'{name}: NOTICES.txt names {word}', word in notices)
    for word, wanted in (('musl', not windows), ('mingw-w64', windows), ('Lucent', windows)):
        equal(f'{name}: NOTICES.txt names {word}', word in notices, wanted)


def check_exe(name, exe, version):
    """The version in the resources of a Windows program, its manifest, and that no time is in its header."""
    at = struct.unpack_from('<I', exe, 0x3c)[0]
    equal(f'{name}: signature, and time in the header', (exe[at:at + 4], exe[at + 8:at + 12]), (b'PE\0\0', bytes(4)))
    numbers = [int(n) for n in version.split('.')] + [0]
    packed = struct.pack('<2I', numbers[0] << 16 | numbers[1], numbers[2] << 16)
    fixed = exe.find(struct.pack('<I', 0xfeef04bd)) + 8
    equal(f'{name}: file and product version in numbers', exe[fixed:fixed + 16], packed + packed)
    for key, value in (('FileVersion', version), ('ProductVersion', version), ('CompanyName', 'The butler_webhook authors'),
                       ('FileDescription', 'Calls webhooks when Qlik Sense reload tasks fail'), ('ProductName', 'butler_webhook'),
                       ('OriginalFilename', 'butler_webhook.exe'), ('LegalCopyright', '')):
        row = re.escape((key + '\0').encode('utf-16-le')) + rb'(?:\0\0)*' + re.escape(value.encode('utf-16-le'))
        check(f'{name}: the resource {key}', re.search(row + (rb'\0\0' if value else rb'[^\0]\0'), exe))
    for word in (b'longPathAware>true<', b'level="asInvoker"', b'{1f676c76-80e1-4239-95bb-83d0f6d0da78}',
                 b'{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}'):
        check(f'{name}: the manifest says {word.decode()}', word in exe)
    check(f'{name}: the manifest leaves the code page alone', b'activeCodePage' not in exe)


def digests(component):
    """The SHA-256 sums of a component, or of the files within it."""
    own = [h['content'] for h in component.get('hashes', []) if h.get('alg') == 'SHA-256']
    return own or [digest for inner in component.get('components', []) for digest in digests(inner)]


def check_component(who, part):
    """What holds for each part of a list."""
    check(f'{who}: type', part.get('type') in ('library', 'data'), part.get('type'))
    version = part.get('version')
    check(f'{who}: version', version)
    purl = r'pkg:(github|deb|generic)/[a-z0-9._/-]+@' + re.escape(str(version)) + r'([?].+)?'
    check(f'{who}: purl', re.fullmatch(purl, part.get('purl', '')), part.get('purl'))
    check(f'{who}: SHA-256', digests(part) and all(re.fullmatch('[0-9a-f]{64}', digest) for digest in digests(part)))
    licences = [x.get('expression') or x['license'].get('id') or x['license'].get('name') for x in part.get('licenses', [])]
    check(f'{who}: licence', licences and all(licences), licences)
    origins = [reference.get('url', '') for reference in part.get('externalReferences', [])]
    check(f'{who}: where it comes from', any(origin.startswith('https://') for origin in origins), origins)
    entry = LOCK.get(part['name'])
    if entry:
        equal(f'{who}: as in vendor/lock', (version, digests(part), licences), (entry.version, [entry.sum], [entry.licence]))


def check_sbom(name, raw, version):
    """What holds for each list. Returns it as JSON, and {component: what it depends on}."""
    sbom = json.loads(raw)
    equal(f'{name}: format', [sbom.get(key) for key in ('bomFormat', 'specVersion', 'version')], ['CycloneDX', '1.5', 1])
    check(f'{name}: serialNumber', re.fullmatch(UUID5, sbom.get('serialNumber', '')), sbom.get('serialNumber'))
    when = datetime.datetime.fromtimestamp(EPOCH, datetime.timezone.utc).strftime('%Y-%m-%dT%H:%M:%SZ')
    equal(f'{name}: timestamp', sbom['metadata'].get('timestamp'), when)
    main = sbom['metadata']['component']
    equal(f'{name}: what it is about', [main.get(key) for key in ('type', 'name', 'version', 'purl', 'licenses')],
          ['application', 'butler_webhook', version, 'pkg:generic/butler_webhook@' + version, [{'license': {'id': 'MIT'}}]])
    for part in sbom['components']:
        check_component(f'{name}: {part.get("name")}', part)
    refs = [part['bom-ref'] for part in (main, *main.get('components', []), *sbom['components'])]
    check(f'{name}: each bom-ref once', len(set(refs)) == len(refs), refs)
    needs = {row['ref']: row['dependsOn'] for row in sbom['dependencies']}
    equal(f'{name}: dependencies name each component', sorted(needs), sorted(refs))
    check(f'{name}: dependencies name nothing else', all(ref in refs for on in needs.values() for ref in on))
    equal(f'{name}: compositions', sbom['compositions'][0].get('assemblies'), [main['bom-ref']])
    return sbom, needs


def check_parts(name, sbom, needs, version):
    """That the list of an archive names what is linked into its binary. Returns its parts."""
    parts = sorted(part['bom-ref'] for part in sbom['components'])
    others = {'mingw-w64', 'libssp'} if name.startswith('windows') else {part for part in LOCK if part.startswith('musl')}
    equal(f'{name}: SBOM: the parts', {part['name'] for part in sbom['components']}, LINKED | others)
    # Files from beyond the build folder, as the linker's map has them.
    linked = re.findall(r'^(?:LOAD )?(/.*?\.(?:o$|a(?=\()))', read(ROOT, 'build', OBJECTS[name], 'map').decode(), re.M)
    equal(f'{name}: SBOM: the files of the compiler that were linked in',
          {file['name'] for part in sbom['components'] for file in part.get('components', [])},
          {os.path.basename(path) for path in linked if not path.startswith(os.path.join(ROOT, 'build'))})
    equal(f'{name}: SBOM: butler_webhook depends on all', sorted(needs['pkg:generic/butler_webhook@' + version]), parts)
    return parts


def main():
    folder, version, *names = sys.argv[1:]
    top = 'butler_webhook-' + version
    inside = {}
    for name in names:
        windows = name.startswith('windows')
        archive = f'{top}-{name}' + ('.zip' if windows else '.tar.gz')
        files = (read_zip if windows else read_tar)(name, os.path.join(folder, archive))
        inner = 'butler_webhook' if windows else top
        check_files(name, files, inner)
        if windows:
            check_exe(name, files[f'{inner}/butler_webhook.exe'], version)
        sbom, needs = check_sbom(f'{name}: SBOM', files[f'{inner}/sbom.cdx.json'], version)
        inside[archive] = check_parts(name, sbom, needs, version)
    sbom, needs = check_sbom('release: SBOM', read(folder, top + '.cdx.json'), version)
    equal('release: SBOM: the archives', {part['name']: digests(part) for part in sbom['metadata']['component']['components']},
          {archive: [sha256(read(folder, archive))] for archive in inside})
    for archive, parts in inside.items():
        equal(f'release: SBOM: what is in {archive}', needs.get(archive), parts)
    equal('release: the files', sorted(os.listdir(folder)), sorted([*inside, top + '.cdx.json', 'SHA256SUMS']))
    return finish()


sys.exit(main())
