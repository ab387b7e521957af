from dpmix_tf.cli.pretrain import main

if __name__ == "__main__":
    main()
