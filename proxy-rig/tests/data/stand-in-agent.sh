#!/bin/sh
# Stands in for `weir` in tests/agent.rs: tells where it runs, gets ready, ends at SIGTERM.
# An argument "fail" (the eighth, after the flags that the rig adds) makes it end at once.
echo "args $*"
echo "cgroup $(sed -n 's/^0:://p' /proc/self/cgroup)"
echo "netns $(readlink /proc/self/ns/net)"
trap 'echo ended in order; exit 0' TERM
[ "$8" = fail ] && { echo "flag provided but not defined"; exit 2; }
echo "2026-01-01T00:00:00Z  INFO weir: ready services=0"
while :; do sleep 0.02; done
