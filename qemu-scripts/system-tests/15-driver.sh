# shellcheck shell=bash
# The driver's interface, promise by promise: host-shim/driver/tests.

st_driver_keeps_its_promises() { on_host --smp 2 --mem 512M --batch /lib/porthole/driver_test; }
st_driver_keeps_its_promises_on_max() { on_host --smp 4 --mem 512M --cpu max,pauth-impdef=on --batch /lib/porthole/driver_test; }
