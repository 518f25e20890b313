#!/bin/sh
# Makes all of it anew: `sh make.sh MODULES PACKAGES`, where npm and pip have put what README.md names. Beforehand
# `unshare --uts` and `hostname shop.example`, as root, keep the host's name out of it. CRON names cron's program.
set -e
cd "$(dirname "$0")"
PYTHONPATH=$2 python3 make.py
PYTHONPATH=$2 python3 programs.py
PYTHONPATH=$2 python3 others.py
node make.mjs "$1"
php make.php
perl make.pl
ruby make.rb
GO111MODULE=off GOPATH=/usr/share/gocode go run make.go
python3 expect.py
node read.mjs "$1"
