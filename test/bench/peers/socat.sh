#!/bin/sh
# For each datagram: a shell, sed, which makes JSON of it, and curl. socat starts it.
sed 's/[\\"]/\\&/g; s/.*/{"text":"&"}/' |
    curl -s -o /dev/null -H 'Content-Type: application/json' --data-binary @- "$URL"
