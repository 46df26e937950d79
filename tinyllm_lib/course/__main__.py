import sys

from tinyllm_lib.course.run import main

if __name__ == "__main__":
    sys.exit(main())
