#!/bin/sh
# Instead of ssh: "agent.sh <host> <command...>" runs the command in the network
# namespace that run.sh made for the host, under a host name of its own, so that
# MPI takes it for another machine. BENCH_LINK_SPACE: its name.
shift
exec ip netns exec "$BENCH_LINK_SPACE" \
    unshare --uts sh -c "hostname brigade-b && $*"
