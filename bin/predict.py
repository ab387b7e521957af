from dpmix_tf.cli.predict import main

if __name__ == "__main__":
    main()
