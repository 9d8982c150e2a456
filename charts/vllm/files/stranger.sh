# Asserts that none of the given HOST:PORTs takes a connection from here; a name without an address proves nothing.
failed=0
for target; do
  seconds=$(curl -sS -m 5 -o /dev/null -w '%{time_connect}' "http://$target/") && status=0 || status=$?
  case $status:$seconds in
    7:0.000000 | 28:0.000000)
      echo "ok   $target refuses a stranger" ;;
    6:*)
      echo "FAIL $target: no ready engine has this name. Wait for the rollout and test again."
      failed=1 ;;
    *)
      echo "FAIL $target took a connection from a pod that is not the router. Does the CNI enforce NetworkPolicies?"
      failed=1 ;;
  esac
done
exit $failed
