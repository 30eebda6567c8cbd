#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
Prints a list of parts (SBOM) in the form of CycloneDX 1.5, made from vendor/lock and from what the compiler says of itself.

    sbom.py platform NAME COMPILER LIBRARY...   what is inside the binary for the platform NAME: the libraries of vendor/lock that
                                                are linked in, the C library, the root certificates, the compiler's own library
    sbom.py release [SBOM ARCHIVE]...           all archives of a release in one list, from the list of each

VERSION (of butler_webhook) and SOURCE_DATE_EPOCH are in the environment. The same input gives the same bytes.
"""

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.parse
import uuid

VENDOR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VERSION = os.environ['VERSION']
MAIN = 'pkg:generic/butler_webhook@' + VERSION

# Name, licences and home of what is no file of vendor/lock, but comes with the compiler, and the files of it that are linked in.
GPL = [{'expression': 'GPL-3.0-or-later WITH GCC-exception-3.1'}]
ZPL = [{'license': {'id': 'ZPL-2.1'}}, {'license': {'name': 'Public domain'}}, {'license': {'name': "Lucent's, for gdtoa"}}]
LIBGCC = ('libgcc', GPL, 'https://gcc.gnu.org/', ['crtbeginS.o', 'crtendS.o', 'libgcc.a'])
LIBGCC_WINDOWS = ('libgcc', GPL, 'https://gcc.gnu.org/', ['crtbegin.o', 'crtend.o', 'libgcc.a'])
LIBSSP = ('libssp', GPL, 'https://gcc.gnu.org/', ['libssp.a'])
MINGW = ('mingw-w64', ZPL, 'https://www.mingw-w64.org/', ['crt2.o', 'libadvapi32.a', 'libkernel32.a', 'libmingw32.a',
                                                          'libmingwex.a', 'libmsvcrt.a', 'libws2_32.a'])

# What vendor/lock does not say of its files.
HOMES = {
    'mbedtls': 'https://www.trustedfirmware.org/projects/mbed-tls/',
    'cjson': 'https://github.com/DaveGamble/cJSON',
    'libyaml': 'https://pyyaml.org/wiki/LibYAML',
    'musl': 'https://musl.libc.org/',
    'certdata': 'https://wiki.mozilla.org/CA',
}
DESCRIPTIONS = {
    'musl-': 'A commit of musl after its release, applied before it is built; the hash is that of what it changes',
    'certdata': "Mozilla's list of root certificates, as NSS carries it; those for servers are built in",
}


def read_lock():
    """Returns the lines of vendor/lock as {name: (version, SHA-256, licence, upstream URL)}."""
    with open(os.path.join(VENDOR, 'lock'), encoding='utf-8') as f:
        rows = [line.split() for line in f if line.strip() and not line.startswith('#')]
    return {row[0]: (row[1], row[3], row[4], next(source for source in row[6:] if source.startswith('https:'))) for row in rows}


def purl(kind, name, version, **qualifiers):
    """Returns a package URL, percent-encoded as the specification of purl wants it."""
    def quote(text):
        return urllib.parse.quote(text, safe='~:')
    parts = '&'.join(f'{key}={quote(value)}' for key, value in sorted(qualifiers.items()))
    return f'pkg:{kind}/{quote(name)}@{quote(version)}' + ('?' + parts if parts else '')


def package(name, version, digest, url):
    """Returns the package URL for a file of vendor/lock: its repository or its address; a commit has another checksum there."""
    source = re.match(r'https://github\.com/([^/]+)/([^/]+)/', url)
    if source:
        return purl('github/' + source[1].lower(), source[2].lower(), version)
    if name.startswith('musl-'):
        return purl('generic', name, version, download_url=url)
    return purl('generic', name, version, download_url=url, checksum='sha256:' + digest)


def locked(name, lock):
    """Returns the component for the line NAME of vendor/lock."""
    version, digest, licence, url = lock[name]
    commit = name.startswith('musl-')
    reference = package(name, version, digest, url)
    component = {
        'type': 'library' if name != 'certdata' else 'data',
        'bom-ref': reference,
        'name': name,
        'version': version,
        'hashes': [{'alg': 'SHA-256', 'content': digest}],
        'licenses': [{'license': {'id': licence}}],
        'purl': reference,
        'externalReferences': [{'type': 'website', 'url': HOMES['musl' if commit else name]}],
    }
    source = {'type': 'distribution', 'url': url}
    if not commit:
        source['hashes'] = component['hashes']
    component['externalReferences'].append(source)
    description = DESCRIPTIONS.get('musl-' if commit else name)
    if description:
        component['description'] = description
    return component


def ask(compiler, *arguments, text=''):
    """Returns what the compiler prints."""
    return subprocess.run([*compiler.split(), *arguments], input=text, stdout=subprocess.PIPE, check=True,
                          encoding='utf-8').stdout.strip()


def says_version(compiler, text):
    """Returns the string that the last line of TEXT is after the preprocessor."""
    return ''.join(re.findall(r'"([^"]*)"', ask(compiler, '-E', '-P', '-xc', '-', text=text).splitlines()[-1]))


def compiled(part, version, compiler, target):
    """
    Returns the component for something that the compiler brings along for the platform TARGET; its files carry the hashes.
    The same version for another platform is another component.
    """
    name, licences, home, files = part
    reference = f'{purl("generic", name, version)}#{target}'
    inside = []
    for file in files:
        path = ask(compiler, '-print-file-name=' + file)
        with open(path, 'rb') as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        inside.append({'type': 'file', 'bom-ref': f'{reference}/{file}', 'name': file,
                       'hashes': [{'alg': 'SHA-256', 'content': digest}]})
    return {
        'type': 'library',
        'bom-ref': reference,
        'name': name,
        'version': version,
        'licenses': licences,
        'purl': purl('generic', name, version),
        'externalReferences': [{'type': 'website', 'url': home}],
        'components': inside,
    }


def platform(name, compiler, libraries):
    """Returns the list for the binary of one platform."""
    lock = read_lock()
    gcc = says_version(compiler, '__VERSION__\n')
    components = [locked(library, lock) for library in libraries] + [locked('certdata', lock)]
    if name.startswith('windows'):
        mingw = says_version(compiler, '#include <_mingw.h>\n__MINGW64_VERSION_STR\n')
        components += [compiled(MINGW, mingw, compiler, name), compiled(LIBSSP, gcc, compiler, name),
                       compiled(LIBGCC_WINDOWS, gcc, compiler, name)]
    else:
        components += [locked(part, lock) for part in lock if part.startswith('musl')] + [compiled(LIBGCC, gcc, compiler, name)]
    main = {
        'type': 'application',
        'bom-ref': MAIN,
        'name': 'butler_webhook',
        'version': VERSION,
        'description': 'Calls webhooks when Qlik Sense reload tasks fail',
        'licenses': [{'license': {'id': 'MIT'}}],
        'purl': MAIN,
        'properties': [{'name': 'butler_webhook:platform', 'value': name}],
    }
    return document(main, components, {MAIN: [c['bom-ref'] for c in components]})


def release(pairs):
    """Returns the list for a release: each archive with its hash, and what is in it."""
    archives = []
    components = {}
    needs = {MAIN: []}
    for sbom, archive in pairs:
        with open(sbom, encoding='utf-8') as f:
            one = json.load(f)
        with open(archive, 'rb') as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        archives.append({'type': 'file', 'bom-ref': archive, 'name': archive, 'version': VERSION,
                         'hashes': [{'alg': 'SHA-256', 'content': digest}],
                         'licenses': [{'license': {'id': 'MIT'}}]})
        needs[MAIN].append(archive)
        needs[archive] = []
        for component in one['components']:
            components[component['bom-ref']] = component
            needs[archive].append(component['bom-ref'])
    main = one['metadata']['component']
    del main['properties']
    main['components'] = archives
    return document(main, list(components.values()), needs)


def document(main, components, needs):
    """Returns the whole document; its serial number is derived from the rest of it."""
    components = sorted(components, key=lambda component: component['bom-ref'])
    needs = {**{c['bom-ref']: [] for c in components}, **needs}
    when = datetime.datetime.fromtimestamp(int(os.environ['SOURCE_DATE_EPOCH']), datetime.timezone.utc)
    content = {
        'version': 1,
        'metadata': {
            'timestamp': when.strftime('%Y-%m-%dT%H:%M:%SZ'),
            'lifecycles': [{'phase': 'build'}],
            'authors': [{'name': 'The butler_webhook authors'}],
            'component': main,
        },
        'components': components,
        'dependencies': [{'ref': ref, 'dependsOn': sorted(needs[ref])} for ref in sorted(needs)],
        'compositions': [{'aggregate': 'complete', 'assemblies': [main['bom-ref']], 'dependencies': [main['bom-ref']]}],
    }
    number = uuid.uuid5(uuid.NAMESPACE_URL, MAIN + '\n' + json.dumps(content, sort_keys=True))
    return {'bomFormat': 'CycloneDX', 'specVersion': '1.5', 'serialNumber': f'urn:uuid:{number}', **content}


def main(arguments):
    if arguments[:1] == ['platform'] and len(arguments) >= 3:
        result = platform(arguments[1], arguments[2], arguments[3:])
    elif arguments[:1] == ['release'] and len(arguments) >= 3 and len(arguments) % 2 == 1:
        result = release(list(zip(arguments[1::2], arguments[2::2])))
    else:
        sys.exit('usage: vendor/release/sbom.py platform NAME COMPILER LIBRARY... | release [SBOM ARCHIVE]...')
    json.dump(result, sys.stdout, indent=2, sort_keys=False)
    print()


main(sys.argv[1:])
