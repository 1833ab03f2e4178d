# shellcheck shell=bash
# --net user: a protected Linux guest whose network are connections of Debian's passt, an ordinary process. DHCP, names,
# TCP and UDP with checksums in both directions and begun by both sides, and what happens when passt cannot start or dies.
# shellcheck disable=SC2016 # the shells of host and guest expand what stands in single quotes

# In the guest: an address by DHCP, then what the test asks for.
USER_NETWORK_GUEST='
cat >/tmp/dhcp <<SCRIPT
#!/bin/sh
[ "\$1" = bound ] || exit 0
ifconfig "\$interface" "\$ip" netmask "\$subnet"
route add default gw "\$router"
for server in \$dns; do echo "nameserver \$server"; done >/etc/resolv.conf
echo "guest: has \$ip of \$subnet, router \$router, mtu \$(cat /sys/class/net/\$interface/mtu)"
SCRIPT
chmod +x /tmp/dhcp
# talk SOCKCAT-WORDS... FILE: sends the noise, takes what the host sends into FILE, and closes last. When the guest has closed first,
# passt (2025-05) forgets a connection as soon as the host has closed, too, with frames still on their way to the guest.
talk() {
    file=$(eval echo "\$$#")
    : >"$file"
    { cat /tmp/noise; until [ "$(wc -c <"$file")" -ge $((MIB * 1048576)) ]; do sleep 0.2; done; } |
        sockcat "$1" "$2" ${4:+"$3"} >"$file"
}
ifconfig eth0 up
udhcpc -i eth0 -n -q -t 100 -s /tmp/dhcp 2>/dev/null || fail "no address by DHCP"
'

# with_passt COMMAND OPTIONS...: a host of Linux guests that has passt. An initramfs is no root that passt could leave,
# so the command runs below a mount of it.
with_passt() {
    local command=$1 work status=0
    work=$(mktemp -d "$PORTHOLE_OUT/passt.XXXXXX")
    mkdir -p "$work/host/etc" "$work/host/below"
    load_tools "$work/tools.cpio"
    echo 'nobody:x:65534:65534:nobody:/:/bin/false' >"$work/host/etc/passwd"
    {
        printf 'MIB=%s GUEST_MEM=256M\n' "${PORTHOLE_GUEST_MIB:-4}"
        printf '%s\n' "$WITH_LINUX_GUEST" 'insmod /lib/porthole/tun.ko || exit 95' "$command"
    } >"$work/host/passt-test"
    pack "$work/host" "$work/host.cpio"
    cat "$PORTHOLE_OUT/initramfs-guest.cpio" "$work/tools.cpio" "$work/host.cpio" >"$work/initrd"
    on_host --smp 2 --mem 3G --initrd "$work/initrd" --batch 'mount --bind / /below && cd /below || exit 92
for folder in dev proc sys tmp run; do mount --bind /$folder $folder || exit 92; done
mount --move . / && exec chroot . /bin/sh /passt-test' || status=$?
    rm -rf "$work"
    return "$status"
}

# The host's side of a network: an interface with a default route, as passt wants to see one, and another address.
UPLINK='
tunctl -t up0 >/dev/null && ip addr add 10.0.2.15/24 dev up0 && ip addr add 10.0.3.1/24 dev up0 && ip link set up0 up &&
    ip link set lo up && ip route add default via 10.0.2.2 || exit 95
'

# Datagrams are of all lengths up to the guest's MTU, and each is sent until it was answered (guest/linux/tools/dgram.c).
# The name server listens on the host; the guest hears of it by DHCP.
st_linux_guest_user_network_carries_tcp_and_udp_both_ways() {
    local out
    out=$(with_passt "$UPLINK"'
dgram echo 5001 &
echoes=$!
dgram names 53 &
names=$!
echo nameserver 10.0.3.1 >/etc/resolv.conf
dd if=/dev/urandom of=/tmp/peer bs=1M count=$MIB 2>/dev/null
sockcat tcp-listen 5000 </tmp/peer >/tmp/got &
listener=$!
# What listens on the host and is not meant for the guest, which could find it at its gateway'"'"'s address.
sockcat tcp-listen 5009 </dev/null >/dev/null &
private=$!
# Begun by the host, once the guest listens.
(wait_for "guest: listens" $NAME.log
 ps -o user,comm | grep " passt" | sort -u
 echo "host: its guest answered $(dgram ask 127.0.0.1 2223 100 65492)"
 tries=0
 until sockcat tcp 127.0.0.1 2222 </tmp/peer >/tmp/got2; do
     tries=$((tries + 1))
     [ "$tries" -lt 1000 ] || { echo "host: the forwarded port does not answer"; break; }
     sleep 0.2
 done) >/tmp/client.log 2>&1 &
client=$!
guest Image '"'$USER_NETWORK_GUEST"'
random_file /tmp/noise $MIB
echo "guest: sent $(sum_of /tmp/noise)"
talk tcp 10.0.3.1 5000 /tmp/back || fail "tcp to the host"
echo "guest: received $(sum_of /tmp/back)"
echo "guest: its host answered $(dgram ask 10.0.3.1 5001 100 65492)"
for name in a.test porthole.test; do
    tries=0
    until nslookup $name 2>&1 | tee /tmp/names | grep -o "203\.0\.113\..*" >/tmp/address; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || fail "no name: $(cat /tmp/names)"
        sleep 0.2
    done
    echo "guest: $name has $(cat /tmp/address)"
done
dgram echo 53 &
echoes=$!
echo "guest: listens"
talk tcp-listen 22 /tmp/back2 || fail "tcp from the host"
kill $echoes
echo "guest: forwarded $(sum_of /tmp/back2)"
timeout 5 sockcat tcp 10.0.2.2 5009 </dev/null >/dev/null 2>&1 && fail "the gateway leads to the host"
pools
for pool in $POOLS/0*; do
    [ "$(cat $pool/io_tlb_full)" -eq 0 ] || fail "$pool: its window was full"
done'"'"' --net user,tcp=127.0.0.1/2222:22,udp=127.0.0.1/2223:53 --cpus 2 || { cat /tmp/client.log; exit 1; }
wait $listener || exit 2
wait $client
cat /tmp/client.log
for sums in "$(said sent) $(sum_of /tmp/got)" "$(said received) $(sum_of /tmp/peer)" \
    "$(said forwarded) $(sum_of /tmp/peer)" "$(said sent) $(sum_of /tmp/got2)"; do
    [ -n "${sums% *}" ] && [ "${sums% *}" = "${sums#* }" ] || { echo "sums differ: $sums"; exit 3; }
done
kill $echoes $names || exit 6
kill $private || { echo "the guest reached a port of the host at its gateway"; exit 4; }
gone() { ! pidof "$1"; }
wait_until gone passt || exit 5
nothing_lost') || { printf '%s\n' "$out" >&2; return 1; }
    printf '%s\n' "$out"
    expect "$out" '^guest: has 10.0.2.15 of 255.255.255.0, router 10.0.2.2, mtu 65520'
    expect "$out" '^nobody +passt'
    expect "$out" '^guest: its host answered 100 datagrams, [0-9]+ bytes'
    expect "$out" '^host: its guest answered 100 datagrams, [0-9]+ bytes'
    expect "$out" '^guest: a.test has 203[.]0[.]113[.]1([^0-9]|$)'
    expect "$out" '^guest: porthole.test has 203[.]0[.]113[.]8([^0-9]|$)'
    ! grep -E 'needs reset|does not answer' <<<"$out"
}

st_linux_guest_outlives_its_passt() {
    local out
    out=$(with_passt '
refused() { timeout 600 porthole run --kernel /lib/porthole/Image --mem 64M --net "$1" </dev/null; }
# It will not run as root, and here is nobody else.
mv /etc/passwd /etc/nobody
refused user
echo "without a user: status $?"
mv /etc/nobody /etc/passwd
'"$UPLINK"'
sockcat tcp-listen 2222 </dev/null >/dev/null 2>&1 &
holder=$!
wait_until listens_at_port 2222 || exit 6
refused user,tcp=2222:22
echo "with a port in use: status $?"
kill $holder
zcat /lib/porthole/disk.gz >/tmp/disk
(wait_for "guest: ready" $NAME.log
 kill -9 $(pidof passt)
 wait_for "guest: link is down" $NAME.log
 porthole status $(ls /run/porthole | sed "s/\.sock//")
 touch /tmp/looked) >/tmp/killer.log 2>&1 &
killer=$!
guest Image '"'$USER_NETWORK_GUEST"'
echo "guest: ready"
tries=0
until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 3000 ] || fail "the link stays up"
    sleep 0.2
done
echo "guest: link is down"
ping -c 3 -W 1 10.0.2.2 && fail "answers from nobody"
disk_works 1
sleep 2'"'"' --net user --disk /tmp/disk || { cat /tmp/killer.log; exit 1; }
wait $killer
cat /tmp/killer.log
nothing_lost') || { printf '%s\n' "$out" >&2; return 1; }
    printf '%s\n' "$out"
    expect "$out" 'net0: --net user: passt cannot work here: .*'
    expect "$out" '^without a user: status 1$'
    expect "$out" 'net0: cannot listen at 2222:22 for the guest: .*; choose another port or address of the host'
    expect "$out" '^with a port in use: status 1$'
    expect "$out" "the other side of the network's socket is gone: .*; the guest's link is down until it is started anew"
    expect "$out" '^guest: disk ok'
    expect "$out" '^guest: end 0'
    ! grep -E 'needs reset' <<<"$out"
}
