"""``python -m mqttquic_lab`` is the command ``mqttquic-lab``."""

import sys

from mqttquic_lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
