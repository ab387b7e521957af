from dpmix_tf.cli.suggest import main

if __name__ == "__main__":
    main()
