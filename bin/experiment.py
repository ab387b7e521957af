from dpmix_tf.cli.experiment import main

if __name__ == "__main__":
    main()
