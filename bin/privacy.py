from dpmix_tf.cli.privacy import main

if __name__ == "__main__":
    main()
