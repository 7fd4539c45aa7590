#!/bin/sh
# The guest's first program: mounts what Linux gives, then runs the agent (or a shell) until it ends.
export PATH=/usr/sbin:/usr/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug
ulimit -l unlimited
ip link set lo up

for word in $(cat /proc/cmdline); do
    case $word in
        rig.name=*) hostname "${word#rig.name=}" ;;
        rig.shell) shell=1 ;;
        rig.load=*) modprobe -a $(echo "${word#rig.load=}" | tr , ' ') ;;
    esac
done

if [ -n "$shell" ]; then
    echo "A shell in the guest; leave it to stop the VM."
    setsid cttyhack bash
else
    # The kernel has the port only a moment after it has started this program.
    tries=0
    while [ -z "$port" ] && [ "$tries" -lt 200 ]; do
        for entry in /sys/class/virtio-ports/*; do
            if [ -e "$entry/name" ] && [ "$(cat "$entry/name")" = rig.agent ]; then
                port=/dev/${entry##*/}
            fi
        done
        [ -n "$port" ] || sleep 0.1
        tries=$((tries + 1))
    done
    rig-agent "$port"
    echo "rig: the agent has ended with status $?"
fi
poweroff -f
