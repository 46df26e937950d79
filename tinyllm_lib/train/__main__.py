from tinyllm_lib.train.trainer import main

if __name__ == "__main__":
    main()
