"""The page for the classroom: `python -m tinyllm_lib.course.demo`."""

import sys

from tinyllm_lib.course.demo.classroom import main

if __name__ == "__main__":
    sys.exit(main())
