"""All notebooks in order: `python -m tinyllm_lib.course`."""

import sys

from tinyllm_lib.course.run import main

if __name__ == "__main__":
    sys.exit(main())
