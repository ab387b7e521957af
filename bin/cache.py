from dpmix_tf.cli.cache import main

if __name__ == "__main__":
    main()
