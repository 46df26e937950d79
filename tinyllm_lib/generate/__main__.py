"""`python -m tinyllm_lib.generate RUN`: a chat in the terminal."""

import sys

from tinyllm_lib.generate.terminal import main

sys.exit(main())
