# shellcheck shell=bash
# The driver's interface, promise by promise: host-shim/driver/tests.

st_driver_keeps_its_promises() { on_host --smp 2 --batch /lib/porthole/driver_test; }
st_driver_keeps_its_promises_on_max() { on_host --smp 4 --cpu max,pauth-impdef=on --batch /lib/porthole/driver_test; }
