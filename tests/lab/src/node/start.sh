# The first process of the node, in a folder and in namespaces of its own: when it ends, the kernel ends the processes of the node,
# and takes its mounts and interfaces away. File descriptor 4 is the network namespace of the machine.
#
#   start.sh INTERFACE NETWORK CGROUP IMAGES
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
interface=$1 network=$2 cgroup=$3 images=$4

# What containerd, the plugins and the kubelet write outside of this folder.
mount --make-rshared /
mount -t tmpfs run /run
mount -t tmpfs var /var
ln -s /run /var/run
mkdir -p /var/lib /var/log /var/tmp

# The kubelet changes these settings of the kernel: it gets copies.
for setting in kernel/keys/root_maxbytes kernel/keys/root_maxkeys kernel/panic kernel/panic_on_oops vm/overcommit_memory vm/panic_on_oom; do
    copy=${setting//\//-}
    cat /proc/sys/$setting >"$copy"
    mount --bind "$copy" /proc/sys/$setting
done

for hierarchy in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do
    [ ! -e "$hierarchy" ] || mkdir -p "$(dirname "$hierarchy")/$cgroup"
done

# Pods share a bridge with an interface of the machine, and have no other route.
machine() { nsenter --net=/proc/self/fd/4 "$@"; }
ip link add "$interface" type veth peer name machine
ip link set "$interface" netns /proc/self/fd/4
machine ip address add "$network.1/24" dev "$interface"
machine ip link set "$interface" up
ip link add pods type bridge
ip link set machine master pods up
ip address add "$network.2/24" dev pods
ip link set pods up
ip link set lo up

containerd --config containerd.toml >containerd.log 2>&1 &
until ctr --address "$PWD/containerd.sock" version >ctr.log 2>&1; do
    kill -0 $! || { tail containerd.log; exit 1; }
    sleep 0.1
done
ctr --address "$PWD/containerd.sock" --namespace k8s.io images import "$images"

until [ -e node.kubeconfig ]; do sleep 0.1; done
./kubelet --config kubelet.json --kubeconfig node.kubeconfig --root-dir "$PWD/kubelet-root" --cert-dir "$PWD/kubelet-root/pki" --hostname-override node \
    --node-ip "$network.2" >kubelet.log 2>&1 &
wait -n || { tail -n 5 containerd.log kubelet.log; exit 1; }
