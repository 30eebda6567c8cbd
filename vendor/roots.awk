# SPDX-License-Identifier: MIT
#
# Makes build/gen/roots.h out of Mozilla's certdata.txt: the certificates that are trusted to sign for servers.
# -v date=YYYY-MM-DD, the day of its release: a root whose CKA_NSS_SERVER_DISTRUST_AFTER lies before that day is left out.
# -v names=1: prints only the names of these certificates, one a line.
# A certificate object and the trust object that speaks of it have the same issuer and serial number.

# An octal dump of ASCII (\062\065...) as text.
function text(dump,    n, i, code, parts, out) {
    n = split(dump, parts, "\\")
    for (i = 2; i <= n; i++) {
        code = substr(parts[i], 1, 1) * 64 + substr(parts[i], 2, 1) * 8 + substr(parts[i], 3, 1)
        out = out sprintf("%c", code)
    }
    return out
}

function end_object(    after) {
    id = field["CKA_ISSUER"] field["CKA_SERIAL_NUMBER"]
    if (class == "CKO_CERTIFICATE") {
        order[++certs] = id
        value[id] = field["CKA_VALUE"]
        label[id] = name_of_object
        after = text(field["CKA_NSS_SERVER_DISTRUST_AFTER"])
        if (after != "" && "20" substr(after, 1, 2) "-" substr(after, 3, 2) "-" substr(after, 5, 2) < date)
            distrusted[id] = 1
    } else if (class == "CKO_NSS_TRUST" && trust == "CKT_NSS_TRUSTED_DELEGATOR")
        trusted[id] = 1
    split("", field)
    class = trust = ""
}

$1 == "CKA_CLASS" { end_object(); class = $3 }
$1 == "CKA_LABEL" { name_of_object = $0; gsub(/^[^"]*"|"$/, "", name_of_object) }
$1 == "CKA_TRUST_SERVER_AUTH" { trust = $3 }
$2 == "MULTILINE_OCTAL" { name = $1; next }
$1 == "END" { name = "" }
name != "" { field[name] = field[name] $0 }

END {
    end_object()
    for (i = 1; i <= certs; i++) {
        id = order[i]
        if (!(id in trusted) || id in distrusted)
            continue
        if (names)
            print label[id]
        len[++count] = length(value[id]) / 4
        total += len[count]
        dump[count] = value[id]
    }
    if (count < 100) {
        print "vendor/roots.awk: only " count + 0 " roots found" >"/dev/stderr"
        exit 1
    }
    if (names)
        exit
    printf "#define ROOTS_DATE \"%s\"\n", date
    printf "#define ROOTS_COUNT %d\n", count
    printf "static const unsigned short roots_len[ROOTS_COUNT] = {"
    for (i = 1; i <= count; i++)
        printf "%s%d,", i % 16 == 1 ? "\n    " : " ", len[i]
    printf "\n};\nstatic const unsigned char roots_der[%d] =", total
    for (i = 1; i <= count; i++)
        for (at = 1; at <= len[i] * 4; at += 96)
            printf "\n    \"%s\"", substr(dump[i], at, 96)
    print ";"
}
