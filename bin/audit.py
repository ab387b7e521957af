from dpmix_tf.cli.audit import main

if __name__ == "__main__":
    main()
