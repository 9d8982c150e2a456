# Puts the images of a `docker save` archive into containerd's store, unpacked by each node when it needs them.
cat > /tmp/config.toml <<'TOML'
version = 3
root = "/var/lib/containerd"
state = "/tmp/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
]
[grpc]
address = "/tmp/containerd.sock"
[ttrpc]
address = "/tmp/ttrpc.sock"
TOML
containerd --config /tmp/config.toml > /tmp/log 2>&1 &
for _ in $(seq 100); do
  [ -S /tmp/containerd.sock ] && break
  sleep 0.2
done
ctr --address /tmp/containerd.sock --namespace k8s.io images import --label=io.cri-containerd.pinned=pinned \
  --all-platforms --no-unpack "$1" || { cat /tmp/log; exit 1; }
ctr --address /tmp/containerd.sock --namespace k8s.io images list --quiet
kill $!
wait $! || true
