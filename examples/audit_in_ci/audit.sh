#!/usr/bin/env sh
# Fails if an attacker who knows the purifier gets more through than we accept.
# Exit code 0: pass; 1: the gate failed; 2: bad input; 3: inconclusive (a flag was raised or an attack failed).
set -eu

purifier audit \
  --classifier "${CLASSIFIER:-demo}" \
  --purifier "${PURIFIER:-demo}" \
  --data "${DATA:-demo:60}" \
  --norm linf --eps "${EPS:-0.05}" \
  --attack pgd:steps=20 \
  --fail-under "${FAIL_UNDER:-0.5}" \
  --out "${OUT:-audited}"
