import sys

from tinyllm_lib.course.demo.classroom import main

if __name__ == "__main__":
    sys.exit(main())
