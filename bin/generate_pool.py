from dpmix_tf.cli.generate_pool import main

if __name__ == "__main__":
    main()
