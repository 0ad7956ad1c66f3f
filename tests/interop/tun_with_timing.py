"""`raven-vpn tun DEVICE --foreground` with other protocol constants, for which there is no option."""

import json
import logging
import sys

from ravenvpn.cli.tun import open_device, run
from ravenvpn.dataplane.contract import Timing

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    timing, name = json.loads(sys.argv[1]), sys.argv[2]
    device, uapi = open_device(name)
    run(device, uapi, timing=Timing(**timing))
