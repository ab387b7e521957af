from dpmix_tf.cli.preview_views import main

if __name__ == "__main__":
    main()
